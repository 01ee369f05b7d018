"""Drawings of several requests, and one whose texts try to be markup; each made once for all tests of this folder."""

import json
from functools import cache

import pytest
from drawn import NAME, TEXT

from advisor.advise import deliberate, table_for
from advisor.draw.drawing import drawing_of
from advisor.request import Request
from knowledge.load import load_knowledge

REQUESTS = [
    {"arch": "transformer", "target": "mobile"},
    {"arch": "cnn", "max_drop": "8pp"},
    {"arch": "rnn", "max_size": "1kb"},
    {"arch": "moe", "top": 9},
    {"model": "zoo:digits-cnn", "max_size": "9mb"},
    {"arch": "transformer", "training": "none", "data_level": "none"},
]


@cache
def drawing_for(asked):
    """The drawing of a request, given as JSON."""
    return drawing_of(deliberate(Request.parse(**json.loads(asked)), load_knowledge()))


@pytest.fixture(scope="module", params=REQUESTS, ids=str)
def drawing(request):
    return drawing_for(json.dumps(request.param))


@pytest.fixture(scope="session")
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
