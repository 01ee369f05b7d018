"""Distillation: building a student of the wanted size from the model, and training it on the original's outputs."""

from __future__ import annotations

import dataclasses

from backends.context import Context
from backends.distill.student import recurrent_student, transformer_student
from backends.models import LoadedModel
from backends.profile import profile
from backends.reshape.channels import Width, narrow, norm_scores, recalibrate
from backends.structure import changed
from backends.training import train
from knowledge.faults import first_line
from knowledge.layers import LayerTable, ModelInfo
from knowledge.students import resize, solve_student
from knowledge.techniques.distill import Distill
from knowledge.values import Decision, InputError, Refusal, Shape, StudentShape


def apply(technique: Distill, model: LoadedModel, context: Context) -> tuple[LoadedModel, Decision]:
    """Replace the model by a smaller one of its kind that starts from its weights and is trained on its outputs.

    The decision holds the student's dimensions and the loss curve. Raises InputError where no student has the wanted
    size or the model's code does not allow it, RunFailed when training diverges.
    """
    shape = solve_student(context.layers, technique.compression)
    teacher = context.teacher if context.teacher is not None else model.clone()
    student, shapes, skipped = build(model.clone(), context, shape)
    curve = train(
        student,
        context.task,
        context.data.train,
        epochs=technique.epochs,
        learning_rate=technique.learning_rate,
        seed=context.seed,
        teacher=teacher,
        temperature=technique.temperature,
        alpha=technique.alpha,
    )
    decision = Decision(technique=technique.id, student=shape, shapes=shapes, skipped=tuple(skipped), curve=curve)
    return dataclasses.replace(changed(student, decision), info=student.info), decision


def build(
    model: LoadedModel, context: Context, shape: StudentShape
) -> tuple[LoadedModel, dict[str, Shape], list[Refusal]]:
    """An untrained student in the given dimensions, made out of `model`, which it uses up.

    Raises InputError where the result is not of those dimensions: its code fixes some of them.
    """
    layers = context.layers
    target = resize(layers, shape)
    skipped: list[Refusal] = []
    try:
        if layers.info.family == "cnn":
            shapes, skipped = narrow(model, layers, _widths(target), norm_scores(model.module, 2), Distill.id)
            recalibrate(model, context.data.calibration)
        elif layers.info.family == "rnn":
            shapes = recurrent_student(model, layers, target)
        else:
            model.module, shapes = transformer_student(model, layers, shape, target)
        student = dataclasses.replace(model, info=_info(model, target))
        real = profile(student, context.workload).parameters
    except (ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise _fixed(model, first_line(error)) from error
    if real != target.parameters:
        raise _fixed(model, f"it has {real} parameters, not {target.parameters}")
    return student, shapes, skipped


def _widths(target: LayerTable) -> Width:
    return lambda path, _: int(target.outputs[target.index(path)])


def _info(model: LoadedModel, target: LayerTable) -> ModelInfo:
    """The model's facts with the student's dimensions."""
    names = ("blocks", "hidden_size", "ffn_size", "heads", "kv_heads", "head_dim")
    return dataclasses.replace(model.info, **{name: getattr(target.info, name) for name in names})


def _fixed(model: LoadedModel, problem: str) -> InputError:
    name = type(model.module).__name__
    remedy = "its code fixes some of them: use channels, layer_drop or svd instead"
    return InputError("distill", name, f"no student of other dimensions can be made: {problem}", remedy)
