"""Files and folders of knowledge that cannot be read: named in one line, and nothing in them is run."""

import pytest
import yaml
from own_entries import refused, write


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rules:\n- id: [\n", "3: is not YAML"),
        ("rules:\n- id: a: b", "2: - id: a: b: is not YAML (mapping values are not allowed"),
        ("- a", "1: is not a mapping; start it with `rules:`"),
        ("tree: x\nrules: 3", "2: rules: 3: is not a list; write `rules:`"),
        ("", "1: is not a mapping"),
        ("rules:\n\n- mine", "3: rules[0]: mine: is not a mapping; start it with `id:`"),
        ("rule:\n- id: a", "1: rule: "),
        ("rules: []\nrules: []", "2: rules: is given twice; keep one of them"),
        ("rules:\n- {id: a, text: x,\n   text: y}", "3: text: is given twice"),
        ("rules: " + 9999 * "[", "1: is nested too deeply"),
        ("rules: " + 99 * "[" + 99 * "]", "1: is nested too deeply"),
        ("rules:\n" + "".join(f"{' ' * n}- \n" for n in range(99)), "is nested too deeply"),
        ("rules: [{when: 2024-13-45}]", "1: is not YAML (month must be in 1..12"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, text, expected):
    path = write(tmp_path, "rules", text)
    line = refused(tmp_path)
    assert line.startswith(f"{path}:")
    assert expected in line


def test_files_that_are_no_text_or_no_files(tmp_path):
    path = write(tmp_path, "rules", "")
    path.write_bytes(b"rules:\n- id: \xff")
    assert refused(tmp_path).startswith(f"{path}:2: is not UTF-8; save the file as UTF-8")
    path.unlink()
    path.mkdir()
    assert refused(tmp_path) == f"rules: {path}: cannot be read (Is a directory); make it readable, or move it away"
    path.rmdir()
    (tmp_path / "targets").mkdir()
    (tmp_path / "rules").rmdir()
    (tmp_path / "rules").write_text("")
    assert "rules: cannot be read (Not a directory)" in refused(tmp_path)


def test_folders_that_hold_nothing(tmp_path):
    assert "holds none of" in refused(tmp_path)
    assert "no such folder" in refused(tmp_path / "missing")


def test_yaml_cannot_run_code(tmp_path):
    write(tmp_path, "rules", "rules: !!python/object/apply:os.system ['true']")
    assert "not YAML" in refused(tmp_path)
    with pytest.raises(yaml.YAMLError):
        yaml.load("!!python/name:os.system", Loader=yaml.CSafeLoader)
