import json
import re
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from advisor.report import rewrite_reports, write_run_report, write_study_report
from advisor.report.charts import round_values, span, trial_charts
from advisor.report.layers import layer_rows, layer_text
from advisor.report.render import linked_html, linked_markdown, render_html, render_markdown
from advisor.report.study import nearest_text
from advisor.report.view import run_report, study_report
from knowledge.layers import LayerTable, ModelInfo
from knowledge.values import InputError

EVIL = "<script>alert('x')</script>|`*[a](javascript:alert(1))"
VOID = {"meta", "br", "line", "polyline", "circle", "link", "img"}


class Page(HTMLParser):
    """Collects tags, addresses and text, and checks that every tag is closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.addresses, self.text = [], [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("href", "src")]
        assert not [k for k, _ in attrs if k.startswith("on")]
        if tag not in VOID or tag == "polyline" or tag == "circle":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if not self.open or self.open[-1] != "style" else ""


def everywhere(value, text):
    """`value` with every string replaced by `text`, except where the shape of the data needs it."""
    fixed = {"unit", "schema", "state", "chain", "technique"}
    if isinstance(value, dict):
        return {k: v if k in fixed else everywhere(v, text) for k, v in value.items()}
    if isinstance(value, list):
        return [everywhere(v, text) for v in value]
    return text if isinstance(value, str) else value


def test_the_page_says_what_was_asked_done_measured_and_estimated(run_json, pareto_json):
    page = Page(render_html(study_report(pareto_json, None, run_json)))
    assert not page.open
    for words in (
        "zoo:digits-cnn",
        "channels → finetune → int8_static for server-cpu",
        "Within the budget, measured on the file that ships.",
        "13.7×",
        "2.38×",
        "98.33 %",
        "−0.56 pp",
        "100 KB",  # the size limit that was asked for
        "Every figure in this table is an estimate.",
        "Channels pay on every target",
        "Zeros are stored and multiplied like other numbers.",
        "prune channels instead",
        "17 asked for, 12 carried out",
        "stopped after magnitude",
        "left alone: int8_static: 2 additions",
        "finetune",
        "Estimated against measured",
        "The model is small",
        "stem.0",
        "avx512_vnni",
    ):
        assert words in page.text, words


def test_the_page_needs_no_network_and_runs_nothing(run_json, pareto_json):
    page = Page(render_html(study_report(pareto_json, None, run_json)))
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert all(re.match(r"https://(arxiv\.org/abs/|github\.com/)", a) for a in page.addresses)
    assert "https://arxiv.org/abs/2301.12900" in page.addresses
    assert "url(" not in render_html(run_report(run_json))


def test_nothing_that_a_user_named_becomes_markup(run_json, pareto_json):
    evil_run, evil_pareto = everywhere(run_json, EVIL), everywhere(pareto_json, EVIL)
    evil_run["layers"] = [run_json["layers"][0] | {"path": EVIL}]
    report = study_report(evil_pareto, None, evil_run)
    page = Page(render_html(report))
    assert not page.open
    assert "script" not in page.tags
    assert EVIL in page.text
    assert not [a for a in page.addresses if a.startswith("javascript")]
    shown = Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(render_markdown(report)))
    assert "script" not in shown.tags
    assert not [a for a in shown.addresses if "javascript" in a]
    assert EVIL in shown.text


def test_evil_trial_chains_stay_text(pareto_json, run_json):
    pareto_json["trials"][0]["stages"] = [{"technique": EVIL, "params": {}}]
    pareto_json["trials"][4] |= {"stages": [], "chain": EVIL}
    page = Page(render_html(study_report(pareto_json, None, run_json)))
    assert "script" not in page.tags


def test_markdown_tables_keep_their_columns(run_json, pareto_json):
    run_json["plan"]["stages"][0]["params"]["importance"] = "a|b\nc"
    run_json["stages"][0]["params"]["importance"] = "a|b\nc"
    text = render_markdown(study_report(pareto_json, None, run_json))
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, table
    assert "[arXiv:2301.12900](https://arxiv.org/abs/2301.12900), table 2" in text


def test_a_missed_budget_is_said_first_and_by_how_much(run_json):
    run_json["verification"]["verdict"] = {
        "within_budget": False,
        "misses": [{"limit": "size", "text": "52.1 KB on disk, 2.1 KB above the limit of 50 KB"}],
    }
    report = run_report(run_json)
    assert report.state == "bad"
    page = Page(render_html(report)).text
    assert page.index("2.1 KB above") < page.index("What was asked")


def test_an_estimate_that_missed_is_marked(run_json):
    run_json["verification"]["speedup"] = {"value": 1.01, "low": 0.98, "high": 1.04}
    compared = {c.figure: c for c in run_report(run_json).compared}
    assert compared["times faster"].inside is False
    assert compared["file size"].inside is True
    assert compared["times faster"].span.measured < compared["times faster"].span.low


def test_a_run_without_verification_or_advice_still_has_a_report(run_json):
    run_json |= {"verification": None, "recommendation": None, "estimate": None, "layers": None, "stages": []}
    page = Page(render_html(run_report(run_json)))
    assert "The file was not verified." in page.text


def test_a_study_in_which_nothing_fits_names_the_nearest(pareto_json, recommendation_json):
    pareto_json |= {"best": None, "front": [], "nearest": 2}
    pareto_json["trials"] = [pareto_json["trials"][2] | {"excess": {"quality": 0.55, "size": -0.4}}]
    report = study_report(pareto_json, recommendation_json, None)
    assert [text.partition(" misses ") for text in report.misses] == [
        ("nearest: trial 2 (channels → finetune → int8_static)", " misses ", "quality by 55 % of the limit"),
        ("it would be within --max-drop 3.1", "", ""),
    ]
    assert not Page(render_html(report)).open


def test_the_nearest_trial_is_told_with_what_it_reached_and_what_it_would_need(pareto_json):
    budget = {"max_drop": {"amount": 2, "unit": "pp"}, "max_size_bytes": 20_000, "min_speedup": 3.0}
    pareto_json |= {"best": None, "nearest": 2, "question": {"budget": budget}}
    pareto_json["trials"][2]["excess"] = {"quality": 0.55, "size": 0.55, "speedup": 0.1}
    assert nearest_text(pareto_json) == (
        "nearest: trial 2 (channels → finetune → int8_static) misses quality by 55 % of the limit (3.10 pp lost where "
        "2 may be) and size by 55 % of the limit (31.0 KB where 20.0 KB is asked for) and speedup by 10 % of the limit "
        "(2.70× where 3.00× is asked for)",
        "it would be within --max-drop 3.1pp --max-size 31000 --min-speedup 2.7",
    )


def test_files_are_written_whole_and_again_from_json(tmp_path, run_json, pareto_json):
    study, best = tmp_path / "study", tmp_path / "study" / "best"
    best.mkdir(parents=True)
    (best / "run.json").write_text(json.dumps(run_json))
    (study / "pareto.json").write_text(json.dumps(pareto_json))
    written = write_run_report(best, run_json) + write_study_report(study, pareto_json, None, run_json)
    assert [p.relative_to(study).as_posix() for p in written] == [
        "best/report.html", "best/report.md", "best/artifact/README.md", "report.html", "report.md",
    ]  # fmt: skip
    first = {p: p.read_bytes() for p in written}
    assert rewrite_reports(study) + rewrite_reports(best)
    assert {p: p.read_bytes() for p in written} == first
    assert not [p for p in study.rglob(".*")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "run.json is missing"),
        ("{", "cannot be read"),
        ("{}", "not written by advisor"),
        ('{"schema": "advisor.run/1"}', "holds no plan"),
    ],
)
def test_a_folder_that_is_no_run_is_named(tmp_path, content, words):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=words):
        rewrite_reports(tmp_path)


def test_only_papers_and_web_addresses_become_links():
    assert linked_html("see arXiv:2301.12900 & more") == (
        'see <a href="https://arxiv.org/abs/2301.12900">arXiv:2301.12900</a> &amp; more'
    )
    assert linked_html('javascript:alert(1) "><b>') == "javascript:alert(1) &#34;&gt;&lt;b&gt;"
    assert linked_markdown("page https://x.org/a_b, there") == "page [https://x.org/a_b](https://x.org/a_b), there"


def test_charts_keep_every_dot_inside(pareto_json):
    for chart in trial_charts(pareto_json, 2.0, "pp"):
        assert len(chart.dots) == 6  # five measured trials and the uncompressed model
        assert all(62 <= d.x <= chart.width - 18 and 16 <= d.y <= chart.height - 46 for d in chart.dots)
        best = [d for d in chart.dots if "best" in d.style]
        assert [d.label for d in best] == ["best"]
        assert chart.x_ticks
        assert chart.y_ticks


def test_a_single_trial_and_equal_values_can_be_drawn(pareto_json):
    pareto_json["trials"] = [pareto_json["trials"][0] | {"speedup": 1.0, "quality_drop": 0.0, "size_bytes": 713_000}]
    assert len(trial_charts(pareto_json)) == 2
    assert trial_charts({**pareto_json, "trials": []}) == ()
    assert round_values(1.0, 1.0) == [1.0]
    assert span(1, 1, 1, 1).measured == 50.0


def test_layer_rows_pair_layers_by_path():
    info = ModelInfo("m", "cnn", "image-classification")
    row = {"kind": "conv", "outputs": 8, "inputs": 4, "kernel": 9, "positions": 64}
    before = LayerTable.of([{"path": "a", **row}, {"path": "b", **row}], info)
    after = before.keep(before.path == "a").change(before.keep(before.path == "a").kind == "conv", outputs=4, bits=8)
    kept, removed = (layer_text(r) for r in layer_rows(before, after))
    assert (kept["before"], kept["after"], kept["bits"], kept["share"]) == ("8×4·9", "4×4·9", "32 → 8", 12.5)
    assert (removed["after"], removed["share"]) == ("removed", None)
