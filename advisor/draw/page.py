"""The drawing as one self-contained page: the picture, the chains, the refusals; nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from advisor.draw.drawing import Drawing
from advisor.draw.layout import lay_out
from advisor.draw.svg import color, picture, serialized, states_of
from advisor.report.render import linked_html
from advisor.show.console import clean
from advisor.units import bytes_text, ratio_text

FOLDER = Path(__file__).parent
REPORT_STYLE = FOLDER.parent / "report" / "style.css"


def page(drawing: Drawing) -> str:
    """The page; every text of the drawing is escaped."""
    layout, script = lay_out(drawing), (FOLDER / "page.js").read_text()
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_cleaned,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "linked": _linked,
        "bytes": bytes_text,
        "ratio": ratio_text,
        "color": color,
    }
    return environment.get_template("page.html.j2").render(
        d=drawing,
        picture=Markup(serialized(picture(drawing, layout))),  # built as a tree, which escapes
        width=round(layout.width),
        states=states_of(drawing),
        style=Markup(REPORT_STYLE.read_text()),  # ours
        script=Markup(script),  # ours
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),  # and no other may run
    )


def _cleaned(value: Any) -> Any:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _linked(source: str) -> Markup:
    return linked_html(clean(source))
