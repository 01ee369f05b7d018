"""The model card that travels with a file."""

from advisor.report import write_run_report
from advisor.report.card import model_card


def test_the_model_card_shows_use_and_measurements(tmp_path, run_json):
    write_run_report(tmp_path, run_json)
    card = (tmp_path / "artifact" / "README.md").read_text()
    assert 'ort.InferenceSession("model.onnx"' in card
    assert "| size on disk | 713 KB | 52.1 KB | 13.7× smaller |" in card
    assert "1. `channels`: ratio 0.5, importance l2, round_to 4" in card


def test_the_model_card_opens_the_file_with_the_kernels_that_it_was_measured_with(run_json):
    key = 'options.add_session_config_entry("session.x64quantprecision", "1")'
    assert key not in model_card(run_json)
    told = {"rule": "integer-sums-overflow", "text": "sums overflow"}
    run_json["verification"]["explanations"].append(told)
    run_json["verification"]["environment"]["integer_sums"] = "may overflow"
    assert key not in model_card(run_json)
    run_json["verification"]["environment"]["integer_sums"] = "exact by option"
    card = model_card(run_json)
    assert key in card
    compile(card.partition("```python\n")[2].partition("```")[0], "card", "exec")
