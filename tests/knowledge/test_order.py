"""Orders that rules ask for: none may run in a circle where rules can fire together."""

from own_entries import RULE, refused, write

from knowledge.load import load_knowledge

ORDER = "- id: {}\n  when: {}\n  then: [{{before: {{first: {}, then: {}}}}}]\n  text: So.\n  source: me\n"


def test_an_order_that_runs_in_a_circle(tmp_path):
    circle = RULE.replace("{prefer: {technique: channels}}", "{before: {first: quantize, then: distill}}")
    path = write(tmp_path, "rules", f"rules:\n{circle}")
    line = refused(tmp_path)
    assert str(path) in line
    assert "mine" in line
    assert "circle" in line


def test_an_order_within_one_phase_may_not_contradict_itself(tmp_path):
    one, other = ORDER.format("a", "{}", "channels", "layer_drop"), ORDER.format("b", "{}", "layer_drop", "channels")
    path = write(tmp_path, "rules", "rules:\n" + one + other)
    line = refused(tmp_path)
    assert line.startswith(f"{path}:")
    assert f"circle, with {path}:" in line
    assert "layer_drop" in line
    assert "channels" in line


def test_orders_that_never_meet_may_differ(tmp_path):
    def rules(first, then):
        one, other = ORDER.format("a", first, "channels", "layer_drop"), ORDER.format("b", then, "layer_drop", "width")
        return "rules:\n" + one + other + ORDER.format("c", "{limits: true}", "width", "channels")

    write(tmp_path, "rules", rules("{arch: cnn}", "{arch: [rnn, moe]}"))
    assert "a" in load_knowledge(tmp_path).rules
    write(tmp_path, "rules", rules("{arch: cnn}", "{arch: [rnn, cnn]}"))
    assert "circle" in refused(tmp_path)
