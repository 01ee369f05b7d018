"""What of a task's YAML counts as code, and which files are looked at."""

import pytest

from backends.harness.trust import check_code, files, read
from knowledge.values import InputError

METRICS = ("acc", "exact_match")


@pytest.fixture
def write(tmp_path):
    def at(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path.resolve()

    return at


def check(tmp_path, asked, index=None):
    """`index`: name -> file, or the members of a tag."""

    def lookup(name):
        found = (index or {}).get(name, tmp_path / f"{name}.yaml")
        return (None, found) if isinstance(found, list) else (found if found.exists() else None, ())

    check_code(asked, lookup, tmp_path / "library", METRICS)


@pytest.mark.parametrize(
    "text",
    [
        "task: t\nprocess_docs: !function utils.f",
        "task: t\nprocess_docs: !<!function> utils.f",
        "class: !function task.Task\ntask: t",
        "task: t\nmetric_list:\n  - metric: !function utils.f",
        "base: &b {doc_to_text: !function utils.f}\ntask: t\n<<: *b",
        "task: t\nx: !!python/object/apply:os.system [ls]",
        "task: t\nmetric_list: [{metric: ./own}]",
        "task: t\nmetric_list: [{metric: acc, hf_evaluate: true}]",
    ],
)
def test_functions_and_foreign_metrics_are_code(write, tmp_path, text):
    path = write("t.yaml", text)
    with pytest.raises(InputError) as error:
        check(tmp_path, ["t"])
    assert str(error.value).startswith(f"lm-eval: {path}: names ")
    assert str(error.value).endswith("; add --allow-code if you trust it")
    assert "\n" not in str(error.value)


def test_data_are_no_code(write, tmp_path):
    write("t.yaml", "task: t  # !function utils.f\ndoc_to_text: '!function utils.f'\nmetric_list: [{metric: acc}]")
    check(tmp_path, ["t"])
    check(tmp_path, ["unknown"])


def test_includes_groups_and_tags_are_followed(write, tmp_path):
    bad = write("inner/bad.yaml", "doc_to_text: !function utils.f")
    write("including.yaml", "include: [inner/good.yaml]\ntask: including")
    write("inner/good.yaml", "include: bad.yaml")
    assert set(files(tmp_path / "including.yaml")) == {
        p.resolve() for p in (tmp_path / "including.yaml", tmp_path / "inner/good.yaml", bad)
    }
    write("group.yaml", "group: g\ntask:\n  - fine\n  - group: inline\n    task: [{task: including}]")
    write("fine.yaml", "task: fine")
    index = {"tagged": ["fine", "g"], "g": tmp_path / "group.yaml"}
    check(tmp_path, ["fine"], index)  # what is not asked for may be anything
    for name in ("including", "g", "tagged"):
        with pytest.raises(InputError, match=f"{bad}: names Python code"):
            check(tmp_path, [name], index)
    write("inner/bad.yaml", "include: good.yaml")  # a circle
    check(tmp_path, ["including"])


def test_the_librarys_own_tasks_may_name_functions_of_theirs(write, tmp_path):
    own = write("library/own.yaml", "task: own\ndoc_to_text: !function utils.f")
    check(tmp_path, ["own"], {"own": own})
    users = write("mine.yaml", "include: library/own.yaml\ntask: mine")
    check(tmp_path, ["mine"], {"mine": users})


@pytest.mark.parametrize("text", ["task: [", "[" * 200_000])
def test_a_file_that_is_no_yaml_is_named(write, text):
    path = write("t.yaml", text)
    with pytest.raises(InputError, match=r"t\.yaml: cannot be read: .*; mend the file") as error:
        read(path)
    assert "\n" not in str(error.value)
