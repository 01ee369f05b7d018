"""Drawings of the graph: every technique is there, the first chain is marked, and nothing from outside is markup."""

import doctest
import html.parser
import json
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import cli
from advisor.advise import deliberate, table_for
from advisor.draw import FORMATS, dot, format_for, mermaid, render, svg
from advisor.draw.drawing import drawing_of
from advisor.draw.layout import GAP, LANE_HEIGHT, Item, lay_out, spread
from advisor.graph import EXPORT, START
from advisor.request import Request
from knowledge.load import load_knowledge
from knowledge.techniques.catalog import CATALOG

KNOWN = load_knowledge()
REQUESTS = [
    {"arch": "transformer", "target": "mobile"},
    {"arch": "cnn", "max_drop": "8pp"},
    {"arch": "rnn", "max_size": "1kb"},
    {"arch": "moe", "top": 9},
    {"model": "zoo:digits-cnn", "max_size": "9mb"},
    {"arch": "transformer", "training": "none", "data_level": "none"},
]
NAME = (
    "%%{init: {'theme':'x'}}%% \"]; click n0 \"javascript:alert(1)\"\n"
    "</title><script>alert(1)</script> \\N \x1b[31m &amp;"
)
TEXT = 'end"]:::first --> x; <img src=x onerror=alert(1)> </script><b>bold</b> \\" \\N #quot; `code` ]]> -->'
SVG = "{http://www.w3.org/2000/svg}"


def advisor(*args):
    return CliRunner().invoke(cli.main, [str(a) for a in args])


@pytest.fixture(scope="module", params=REQUESTS, ids=str)
def drawing(request):
    return drawing_of(deliberate(Request.parse(**request.param), KNOWN))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A drawing whose model name, rule text, source and remedy try to be markup."""
    folder = tmp_path_factory.mktemp("knowledge")
    (folder / "rules").mkdir()
    said = {"text": TEXT, "source": TEXT, "remedy": TEXT}
    rules = [
        {"id": "refuses", "then": [{"refuse": {"technique": "fp16"}}], **said},
        {"id": "likes", "then": [{"prefer": {"technique": "int8_static", "weight": 4}}], **said},
    ]
    (folder / "rules" / "own.yaml").write_text(json.dumps({"rules": rules}))
    request = Request.parse(arch="cnn", knowledge=str(folder))
    return drawing_of(deliberate(request, layers=table_for(request).with_info(name=NAME)))


# -- what is drawn ------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [svg, mermaid, dot], ids=lambda m: m.__name__)
def test_examples_hold(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


def test_every_technique_is_drawn_and_the_refused_say_why(drawing):
    assert {n.technique for n in drawing.nodes} - {""} == set(CATALOG)
    refused = {n.technique: n.about for n in drawing.nodes if n.state == "refused"}
    assert set(refused) == {r.technique for r in drawing.refused}
    for no in drawing.refused:
        assert no.text in refused[no.technique]
        assert no.rule in refused[no.technique]
        assert no.remedy in refused[no.technique]
    assert not {n.id for n in drawing.nodes if n.state in ("refused", "idle")} & {
        end for edge in drawing.edges for end in (edge.first, edge.then)
    }


def test_the_path_is_the_first_chain_s(drawing):
    techniques = {n.id: n.technique for n in drawing.nodes}
    assert drawing.path == drawing.chains[0].path
    for chain in drawing.chains:
        assert (chain.path[0], chain.path[-1]) == (START, EXPORT)
        assert "+".join(techniques[n] for n in chain.path[1:-1]) == ("" if chain.id == "nothing" else chain.id)
        marked = {(e.first, e.then) for e in drawing.edges if chain.rank in e.ranks}
        assert marked == set(pairwise(chain.path))
    assert {n.id for n in drawing.nodes if n.state == "first"} == set(drawing.path[1:-1])


def test_every_rule_on_an_edge_has_its_sentence(drawing):
    named = {rule for edge in drawing.edges for rule in edge.rules}
    assert named == set(drawing.rules)
    assert all(drawing.rules.values())
    for edge in drawing.edges:
        assert all(rule in drawing.about_edge(edge) for rule in edge.rules)


# -- where it is drawn --------------------------------------------------------------------------


def test_boxes_do_not_touch_and_phases_go_from_left_to_right(drawing):
    layout = lay_out(drawing)
    boxes = {box.node.id: box for box in layout.boxes}
    assert set(boxes) == {n.id for n in drawing.nodes}
    for one in boxes.values():
        assert 0 <= one.x <= one.x + one.width <= layout.width
        assert 0 <= one.y - one.height / 2 <= one.y + one.height / 2 <= layout.height
        for other in boxes.values():
            if one.node.phase < other.node.phase:
                assert one.x + one.width < other.x
            elif one is not other and one.node.phase == other.node.phase:
                assert abs(one.y - other.y) >= (one.height + other.height) / 2 + GAP - 1e-6


def test_steps_of_ranked_chains_pass_beside_the_boxes(drawing):
    layout = lay_out(drawing)
    phases = {n.id: n.phase for n in drawing.nodes}
    for line in layout.lines:
        if not line.edge.ranks:
            continue
        start, end = phases[line.edge.first], phases[line.edge.then]
        assert len(line.points) == 2 + 2 * len({p for p in phases.values() if start < p < end})
        for (left, y), (right, same) in zip(line.points[1:-1:2], line.points[2:-1:2], strict=True):
            assert y == same
            for box in layout.boxes:
                if box.x < right and left < box.x + box.width:
                    assert abs(box.y - y) >= (box.height + LANE_HEIGHT) / 2 + GAP - 1e-6


@given(st.lists(st.tuples(st.floats(-500, 500), st.floats(5, 40)), min_size=1, max_size=12))
def test_spreading_keeps_the_order_the_gaps_and_what_is_far_enough_apart(wanted):
    column = [Item(0, height) for _, height in wanted]
    spread(column, [want for want, _ in wanted])
    for one, other in pairwise(column):
        assert other.y - one.y >= (one.height + other.height) / 2 + GAP - 1e-6
    assert sum(i.y for i in column) == pytest.approx(sum(want for want, _ in wanted), abs=1e-3)
    again = [item.y for item in column]
    spread(column, again)
    assert [item.y for item in column] == pytest.approx(again)


# -- Mermaid ------------------------------------------------------------------------------------

NODE = re.compile(r'\s*(n\d+)\["([^"]*)"\]:::(\w+)')
STEP = re.compile(r'\s*(n\d+) (==>|-->|-\.->)(?:\|"([^"]*)"\|)? (n\d+)')
OTHER = re.compile(
    r'flowchart LR|%% .*|\s*subgraph p\d+\["[^"]*"\]|\s*end|\s*n\d+ ~~~ n\d+( & n\d+)*|\s*classDef \w+ [^\n]*'
)
SHOWN = re.compile(r"(?:[A-Za-z0-9 .,:;_+@→×–-]|#\d+;|<br/>)*")


def parse_mermaid(text):
    """(label and class of each node, steps by their arrow); fails on a line that is no statement."""
    nodes, steps = {}, {"==>": [], "-->": [], "-.->": []}
    for line in text.splitlines():
        if found := NODE.fullmatch(line):
            assert found[1] not in nodes
            assert SHOWN.fullmatch(found[2]), found[2]
            nodes[found[1]] = (found[2], found[3])
        elif found := STEP.fullmatch(line):
            assert SHOWN.fullmatch(found[3] or ""), found[3]
            steps[found[2]].append((found[1], found[4]))
        else:
            assert OTHER.fullmatch(line), line
    return nodes, steps


def test_mermaid_marks_the_first_chain_and_names_refusals(drawing):
    text = render(drawing, "mermaid")
    nodes, steps = parse_mermaid(text)
    names = {f"n{number}": node for number, node in enumerate(drawing.nodes)}
    assert set(nodes) == set(names)
    for name, (label, style) in nodes.items():
        node = names[name]
        assert label.startswith(node.technique or node.id)
        assert style == ("end_" if node.state == "end" else node.state)
        assert ("refused: " in label) == (node.state == "refused")
    thick = [(names[first].id, names[then].id) for first, then in steps["==>"]]
    assert set(thick) == set(pairwise(drawing.path))
    drawn = sum(map(len, steps.values()))
    left_out = re.search(r"%% (\d+) other allowed steps are left out", text)
    assert drawn + (int(left_out[1]) if left_out else 0) == len(drawing.edges)
    assert drawn <= 500


def test_mermaid_shows_hostile_texts_as_they_are(hostile):
    text = render(hostile, "mermaid")
    parse_mermaid(text)
    assert "%%{" not in text
    assert "<script" not in text
    comments = [line for line in text.splitlines() if line.startswith("%%")]
    assert all(SHOWN.fullmatch(line.removeprefix("%% ")) for line in comments)


# -- DOT ----------------------------------------------------------------------------------------

TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[A-Za-z_]\w*|->|[{}\[\];,=])', re.DOTALL)


def tokens(text):
    at = 0
    while text[at:].strip():
        found = TOKEN.match(text, at)
        assert found, text[at : at + 60]
        yield found[1]
        at = found.end()


def unquoted(token):
    return re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], token[1:-1]) if token.startswith('"') else token


def parse_dot(text):
    """(attributes by node, attributes by edge) of `digraph NAME { statement; … }`."""
    words = list(tokens(text))
    assert words[0] == "digraph"
    assert (words[2], words[-1]) == ("{", "}")
    nodes, edges, at = {}, {}, 3
    while at < len(words) - 1:
        names = [unquoted(words[at])]
        while words[at + 1] == "->":
            at += 2
            names.append(unquoted(words[at]))
        at += 1
        assert words[at] == "["
        attributes = {}
        while words[at] != "]":
            assert words[at] in ("[", ",")
            assert words[at + 2] == "="
            attributes[words[at + 1]] = unquoted(words[at + 3])
            at += 4
        assert words[at + 1] == ";"
        at += 2
        (edges if len(names) > 1 else nodes)[tuple(names) if len(names) > 1 else names[0]] = attributes
    return nodes, edges


def test_dot_has_every_node_and_edge_and_marks_the_first_chain(drawing):
    nodes, edges = parse_dot(render(drawing, "dot"))
    assert {n.id for n in drawing.nodes} <= set(nodes)
    assert set(edges) == {(e.first, e.then) for e in drawing.edges}
    thick = {pair for pair, looks in edges.items() if looks.get("penwidth") == "3"}
    assert thick == set(pairwise(drawing.path))
    for no in drawing.refused:
        assert no.text in nodes[no.technique]["tooltip"]
        assert "dashed" in nodes[no.technique]["style"]
    for pair, looks in edges.items():
        edge = next(e for e in drawing.edges if (e.first, e.then) == pair)
        assert all(rule in looks["tooltip"] for rule in edge.rules)


def test_dot_means_hostile_texts_as_they_are(hostile):
    text = render(hostile, "dot")
    nodes, _ = parse_dot(text)
    assert TEXT in nodes["fp16"]["tooltip"]
    assert nodes["graph"]["label"] == f"{NAME} on server-cpu".replace("\x1b", "�")
    assert "\x1b" not in text


# -- SVG ----------------------------------------------------------------------------------------


def parts(tree, kind):
    return [g for g in tree.iter(f"{SVG}g") if kind in g.get("class").split() and g.find(f"{SVG}title") is not None]


def test_svg_is_xml_with_every_technique_and_the_first_chain_marked(drawing):
    tree = ET.fromstring(render(drawing, "svg"))
    nodes = {g.get("data-id"): g for g in parts(tree, "node")}
    assert {nodes[n.id].find(f"{SVG}text").text for n in drawing.nodes if n.technique} == set(CATALOG)
    marked = {(g.get("data-first"), g.get("data-then")) for g in parts(tree, "c1")}
    assert marked == set(pairwise(drawing.path))
    assert {n for n, g in nodes.items() if "first" in g.get("class").split()} == set(drawing.path[1:-1])
    for no in drawing.refused:
        group = nodes[no.technique]
        assert "refused" in group.get("class").split()
        assert no.text in group.find(f"{SVG}title").text
        assert no.text in group.get("aria-label")
    assert len(parts(tree, "edge")) == len(drawing.edges)
    for edge in parts(tree, "strong"):
        assert edge.get("tabindex") == "0"


def test_svg_fetches_nothing_and_shows_hostile_texts_as_they_are(hostile):
    tree = ET.fromstring(render(hostile, "svg"))
    assert {e.tag.removeprefix(SVG) for e in tree.iter()} == {"svg", "title", "style", "rect", "text", "g", "path"}
    assert not [e for e in tree.iter() if any("href" in name or name.startswith("on") for name in e.attrib)]
    assert "url(" not in tree.find(f"{SVG}style").text
    fp16 = next(g for g in parts(tree, "node") if g.get("data-id") == "fp16")
    assert TEXT in fp16.find(f"{SVG}title").text
    assert NAME.replace("\x1b", "�") in tree.find(f"{SVG}title").text


# -- the page -----------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Elements of a page with their attributes, and its texts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_is_one_file_that_fetches_nothing(drawing):
    page = Page(render(drawing, "html"))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(tags)
    assert not [a for _, a in page.elements if "src" in a or any(name.startswith("on") for name in a)]
    assert {tag for tag, a in page.elements if "href" in a} <= {"a"}
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert not re.search(r"@import|url\(", "".join(page.texts))


def test_the_page_can_be_read_by_keyboard_and_lists_chains_and_refusals(drawing):
    page = Page(render(drawing, "html"))
    focusable = [a for _, a in page.elements if a.get("tabindex") == "0"]
    assert {n.id for n in drawing.nodes} == {a["data-id"] for a in focusable if "data-id" in a}
    rows = [a["data-rank"] for tag, a in page.elements if tag == "tr" and "data-rank" in a]
    assert rows == [str(c.rank) for c in drawing.chains]
    shown = " ".join(page.texts)
    assert all(no.text in shown for no in drawing.refused)
    assert "prefers-color-scheme: dark" in shown


def test_the_policy_allows_the_page_s_own_script_and_no_other(hostile):
    import base64
    import hashlib

    text = render(hostile, "html")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in text


def test_the_page_shows_hostile_texts_as_they_are(hostile):
    page = Page(render(hostile, "html"))
    assert not {"b", "img"} & {tag for tag, _ in page.elements}
    shown = "".join(page.texts)
    assert NAME.replace("\x1b", "�") in shown
    assert TEXT in shown
    assert "\x1b" not in shown


# -- the command --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "out", "form"),
    [
        (None, None, "mermaid"),
        (None, "a.mmd", "mermaid"),
        (None, "a.GV", "dot"),
        (None, "a.b/c.svg", "svg"),
        (None, "a.htm", "html"),
        ("dot", "a.txt", "dot"),
        ("svg", None, "svg"),
    ],
)
def test_the_format_is_the_one_named_or_that_of_the_ending(named, out, form):
    assert format_for(named, Path(out) if out else None) == form


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--format", "pgn"], "unknown format"),
        (["--format", "htlm"], "did you mean html"),
        (["--out", "graph.png"], "use .mmd"),
        (["--out", "graph"], "the ending names no format"),
        (["--out", "folder.svg"], "is a folder"),
        (["--out", "file/graph.svg"], "cannot be written"),
        (["--top", "0"], "is below 1"),
        (["--target", "mobil"], "did you mean mobile"),
        (["zoo:no-such-model"], "zoo:no-such-model"),
    ],
)
def test_bad_requests_for_a_drawing_get_one_line_and_leave_nothing(args, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.svg").mkdir()
    (tmp_path / "file").write_text("")
    arch = [] if args[0].startswith("zoo:") else ["--arch", "cnn"]
    shown = advisor("graph", *args, *arch)
    assert shown.exit_code == 2
    assert said in shown.stderr
    assert shown.stderr.strip().count("\n") == 0
    assert shown.stdout == ""
    assert {p.name for p in tmp_path.rglob("*")} == {"folder.svg", "file"}


def test_json_has_nodes_edges_path_and_refusals_of_the_recommendation():
    found = json.loads(advisor("graph", "--arch", "cnn", "--json").stdout)
    advice = json.loads(advisor("recommend", "--arch", "cnn", "--json").stdout)
    assert next(iter(found)) == "schema"
    assert {"nodes", "edges", "path", "refused", "chains", "rules"} <= set(found)
    techniques = {n["id"]: n["technique"] for n in found["nodes"]}
    first = advice["chains"][0]
    assert [techniques[n] for n in found["path"][1:-1]] == [s["technique"] for s in first["stages"]]
    assert found["refused"] == advice["refused"]
    assert [c["id"] for c in found["chains"]] == [c["id"] for c in advice["chains"]]


@pytest.mark.parametrize("form", FORMATS)
def test_files_hold_what_is_printed(form, tmp_path):
    ending = {"mermaid": "mmd"}.get(form, form)
    file = tmp_path / f"graph.{ending}"
    shown = advisor("graph", "--arch", "rnn", "--out", file)
    assert (shown.exit_code, shown.stdout) == (0, f"graph: {file}\n")
    assert file.read_text() == advisor("graph", "--arch", "rnn", "--format", form).stdout
    assert [p.name for p in tmp_path.iterdir()] == [file.name]
