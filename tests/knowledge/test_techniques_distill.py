import pytest

from knowledge.students import resize, solve_student, student_table
from knowledge.techniques.distill import Distill, DistillText, MiniLlm
from knowledge.typical import typical
from knowledge.values import Decision, StudentShape

LM = typical("transformer", "causal-lm")


@pytest.mark.parametrize("cls", [Distill, MiniLlm, DistillText])
def test_every_distillation_leads_to_the_same_student(cls):
    student = cls(compression=2.5).effect(LM)
    assert student is student_table(LM, 2.5)  # solved once for all of them
    assert student.rows() == resize(LM, solve_student(LM, 2.5)).rows()
    assert student.parameters == pytest.approx(LM.parameters / 2.5, rel=0.02)
    decided = cls().effect(LM, Decision(technique=cls.id, student=StudentShape(blocks=3)))
    assert decided.info.blocks == 3


@pytest.mark.parametrize("cls", [MiniLlm, DistillText])
@pytest.mark.parametrize("task", ["text-classification", "embedding", "image-classification"])
def test_what_writes_no_text_is_refused(cls, task):
    refusals = list(cls().refusals(typical("transformer", task)))
    assert [r.rule for r in refusals] == ["distill-not-generative"]
    assert refusals[0].observed == f"a model for {task}"
    assert "distill" in refusals[0].remedy


@pytest.mark.parametrize("cls", [MiniLlm, DistillText])
def test_language_models_are_taken_and_other_families_refused(cls):
    assert list(cls().refusals(LM)) == []
    assert list(cls().refusals(typical("moe"))) == []
    assert [r.rule for r in cls().refusals(typical("cnn"))] == ["technique-architecture"]


@pytest.mark.parametrize("cls", [Distill, MiniLlm, DistillText])
def test_more_compression_is_more_strength_and_fewer_bytes(cls):
    steps = [cls(compression=c) for c in (1.5, 2.0, 3.0, 4.0)]
    sizes = [step.effect(LM).stored_bytes for step in steps]
    assert sizes == sorted(sizes, reverse=True)
    assert [s.strength() for s in steps] == sorted(s.strength() for s in steps)


def test_students_that_are_too_small_are_refused():
    assert [r.rule for r in MiniLlm(compression=1e4).refusals(LM)] == ["distill-too-small"]
