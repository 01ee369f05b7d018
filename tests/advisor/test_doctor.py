import json

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

import cli
from advisor import doctor, readiness
from advisor.doctor import diagnose_machine, tested_versions


def check(diagnosis, name):
    return next(c for c in diagnosis.checks if c.name == name)


def test_this_installation_runs_every_technique():
    found = diagnose_machine()
    assert {t.why_not for t in found.techniques if not t.runs} <= {readiness.NOT_YET}
    assert {t.technique for t in found.techniques if t.runs} == readiness.runnable()
    assert check(found, "python").status == "ok"
    assert check(found, "cache").status == "ok"
    assert "GB free" in check(found, "disk").text


def test_a_missing_or_old_library_is_named_with_the_remedy(monkeypatch):
    wanted = [Requirement("no-such-library>=1"), Requirement("numpy>=999"), Requirement("click>=8")]
    monkeypatch.setattr(doctor, "requirements", lambda: wanted)
    found = diagnose_machine()
    absent, old = check(found, "no-such-library"), check(found, "numpy")
    assert (absent.status, absent.text) == ("missing", "not installed")
    assert absent.remedy == "pip install 'no-such-library>=1'"
    assert old.status == "missing"
    assert ">=999" in old.text
    assert check(found, "click").status != "missing"
    assert found.exit_code == 1


def test_another_version_than_the_tested_one_is_noted(monkeypatch):
    monkeypatch.setattr(doctor, "requirements", lambda: [Requirement("click>=8")])
    monkeypatch.setattr(doctor, "tested_versions", lambda: {"click": "8.0.0"})
    noted = check(diagnose_machine(), "click")
    assert noted.status == "note"
    assert "8.0.0 is the version that was tested" in noted.text


def test_what_only_some_uses_need_is_a_note(monkeypatch):
    wanted = [("images", Requirement("no-such-library>=1")), ("minilm", Requirement("numpy>=1"))]
    monkeypatch.setattr(doctor, "optional", lambda: wanted)
    found = diagnose_machine()
    absent = check(found, "no-such-library")
    assert (absent.status, absent.remedy) == ("note", "pip install 'compression-advisor[images]'")
    assert "folders of images" in absent.text
    assert next(c for c in found.checks if c.text.endswith(", for minilm")).status == "ok"


def test_every_extra_is_known_with_its_use():
    named = {extra for extra, _ in doctor.optional()}
    assert named == set(doctor.USES)
    assert not {need.name for _, need in doctor.optional()} & {need.name for need in doctor.requirements()}


def test_pins_are_read_from_the_constraints():
    pins = tested_versions()
    assert "torch" in pins
    assert "jinja2" in pins  # as pip spells it: Jinja2


@pytest.mark.parametrize(("flags", "status"), [({"avx2"}, "note"), ({"avx2", "avx512_vnni"}, "ok"), (set(), "note")])
def test_a_processor_without_int8_dot_products_is_noted(monkeypatch, flags, status):
    monkeypatch.setattr(doctor.processor, "cpu_flags", lambda: frozenset(flags))
    found = check(diagnose_machine(), "processor")
    assert found.status == status
    assert ("no INT8 dot product" in found.text) == (status == "note")


def test_a_cache_that_cannot_be_written_is_missing(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("ADVISOR_CACHE", str(blocked / "cache"))
    found = check(diagnose_machine(), "cache")
    assert found.status == "missing"
    assert "ADVISOR_CACHE" in found.remedy


def test_a_technique_whose_library_is_absent_says_which(monkeypatch):
    real = readiness.importlib.util.find_spec
    monkeypatch.setattr(
        readiness.importlib.util, "find_spec", lambda name: None if name == "torch_pruning" else real(name)
    )
    why = {r.technique: r.why_not for r in readiness.readiness()}
    assert why["channels"] == "needs torch_pruning"
    assert why["magnitude"] == ""


def test_techniques_that_nobody_can_run_yet_are_no_fault_of_the_installation(monkeypatch):
    found = diagnose_machine()
    waiting = readiness.Readiness(technique="wanda", runs=False, why_not=readiness.NOT_YET)
    broken = readiness.Readiness(technique="svd", runs=False, why_not="needs torch")
    assert found.model_copy(update={"techniques": (waiting,)}).exit_code == 0
    assert found.model_copy(update={"techniques": (waiting, broken)}).exit_code == 1
    monkeypatch.setattr(readiness, "runnable", lambda: frozenset({"svd"}))
    assert [r.technique for r in readiness.readiness() if not r.planned_only] == ["svd"]
    assert "wanda" in CliRunner().invoke(cli.main, ["doctor"]).stdout.partition("not yet")[2]


def test_the_command_prints_both_forms():
    shown = CliRunner().invoke(cli.main, ["doctor"])
    assert shown.exit_code == 0, shown.stdout
    assert "int8_static" in shown.stdout
    found = json.loads(CliRunner().invoke(cli.main, ["doctor", "--json"]).stdout)
    assert found["schema"] == "advisor.doctor/1"
    assert {"name", "status", "text", "remedy"} == set(found["checks"][0])
