"""Entries of a user's own folder of knowledge, and what a folder that cannot be understood must say."""

from pathlib import Path

import pytest

from knowledge.load import load_knowledge
from knowledge.values import InputError

RULE = "- id: mine\n  when: {arch: cnn}\n  then: [{prefer: {technique: channels}}]\n  text: Because.\n  source: me\n"
MODEL = """id: mine
shape: resnet
info: {family: cnn, task: image-classification}
default_for: [cnn]
sizes: {width: 32, stages: [1, 1, 1, 1], classes: 10, image: 64, channels: 3}
parameters: 1
source: me
"""
PRESET = """id: mine
about: A preset.
source: me
max_drop: 2pp
params:
  svd: {ratio: 0.5}
  distill: {compression: 3.0, epochs: 5}
"""
CLAIM = (
    "claims:\n- {id: c, technique: channels, params: {ratio: 0.5}, arch: cnn, model: m, protocol: p, metric: accuracy,"
    " drop: 1, unit: pp, source: me, status: reported}\n"
)


def write(folder: Path, kind: str, text: str, name: str = "a.yaml") -> Path:
    (folder / kind).mkdir(exist_ok=True)
    path = folder / kind / name
    path.write_text(text)
    return path


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        load_knowledge(folder)
    line = str(error.value)
    assert "\n" not in line
    return line
