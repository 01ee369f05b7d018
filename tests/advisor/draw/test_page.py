"""The page: one file that fetches nothing, can be read by keyboard, and holds no markup from outside."""

import html.parser
import re

from drawn import NAME, TEXT

from advisor.draw import render


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
