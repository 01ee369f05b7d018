"""Recovery: training after a lossy stage."""

from __future__ import annotations

from backends.context import Context
from backends.losses import learnable
from backends.models import LoadedModel
from backends.prune.magnitude import zero_masks
from backends.training import train
from knowledge.techniques.recover import Finetune
from knowledge.values import Decision


def apply(technique: Finetune, model: LoadedModel, context: Context) -> tuple[LoadedModel, Decision]:
    """Train the compressed model in place; the zeros of a pruned model stay zero.

    On the task's own loss where the training data can give it, otherwise towards the original model's outputs. The
    decision holds the loss curve. Raises RunFailed when training diverges.
    """
    split = context.data.train
    curve = train(
        model,
        context.task,
        split,
        epochs=technique.epochs,
        learning_rate=technique.learning_rate,
        seed=context.seed,
        teacher=None if learnable(context.task, split) else context.teacher,
        masks=zero_masks(model),
    )
    return model, Decision(technique=technique.id, curve=curve)
