import pytest

from advisor.units import parse_bytes, parse_count, parse_drop, parse_milliseconds, parse_ratio, parse_seconds
from knowledge.values import InputError


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_bytes, "50MB", 50_000_000),
        (parse_bytes, " 1.5 gb", 1_500_000_000),
        (parse_bytes, "64KiB", 65_536),
        (parse_bytes, "812", 812),
        (parse_count, "7B", 7e9),
        (parse_count, "350M", 350e6),
        (parse_seconds, "30m", 1800),
        (parse_seconds, "90", 90),
        (parse_milliseconds, "20ms", 20),
        (parse_milliseconds, "0.5s", 500),
        (parse_milliseconds, "20", 20),
        (parse_ratio, "2x", 2),
    ],
)
def test_figures_are_read_as_people_write_them(parse, text, value):
    assert parse("field", text) == value


@pytest.mark.parametrize(
    ("text", "amount", "unit"), [("2", 2, "%"), ("2pp", 2, "pp"), ("0.7%", 0.7, "%"), ("0", 0, "%")]
)
def test_a_drop_takes_the_metric_s_unit_unless_it_names_one(text, amount, unit):
    drop = parse_drop("max-drop", text, "%")
    assert (drop.amount, drop.unit) == (amount, unit)


@pytest.mark.parametrize(
    ("parse", "text", "words"),
    [
        (parse_bytes, "-5MB", "below zero"),
        (parse_bytes, "50 apples", "unknown unit"),
        (parse_bytes, "much", "not a number"),
        (parse_bytes, "nan", "not a number"),
        (parse_bytes, "0", "above zero"),
        (parse_bytes, "1e300GB", "too large"),
        (parse_seconds, "", "not a number"),
        (parse_ratio, "0", "above zero"),
        (lambda f, t: parse_drop(f, t, "pp"), "-1", "below zero"),
        (lambda f, t: parse_drop(f, t, "pp"), "2kg", "unknown unit"),
    ],
)
def test_nonsense_is_refused_with_an_example(parse, text, words):
    with pytest.raises(InputError, match=words) as refused:
        parse("field", text)
    assert refused.value.remedy.startswith("use ")
