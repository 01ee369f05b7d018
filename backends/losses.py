"""What a training step minimizes: the task's own loss, the distance to a teacher's outputs, or both."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from backends.data import Split
from backends.models import LoadedModel
from backends.tasks import Task

Loss = Callable[[Tensor, dict[str, Tensor], Tensor | None], Tensor]


def soft_loss(student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """T² · KL(teacher‖student) of the outputs softened by T, averaged over unmasked positions.

    student, teacher: logits [..., classes]; mask: [...], 0 where a position is padding. arXiv:1503.02531, section 2.
    """
    wanted = F.log_softmax(teacher.float() / temperature, dim=-1)
    given = F.log_softmax(student.float() / temperature, dim=-1)
    divergence = (wanted.exp() * (wanted - given)).sum(-1)  # [...]
    return temperature**2 * masked_mean(divergence, mask)


def vector_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 − cosine between the student's and the teacher's vectors, averaged. [batch, width] both."""
    return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the positions that are not padding; all of them where the mask has another shape."""
    if mask is None or mask.shape != values.shape:
        return values.mean()
    weights = mask.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp(min=1)


def objective(model: LoadedModel, task: Task, has_labels: bool, temperature: float, alpha: float) -> Loss:
    """The loss of a step: alpha · soft + (1 − alpha) · hard where there are both, and the one there is otherwise."""
    vectors = model.output == "embedding"

    def loss(outputs: Tensor, batch: dict[str, Tensor], teacher: Tensor | None) -> Tensor:
        hard = task.loss(outputs, batch) if has_labels and (teacher is None or alpha < 1) else None
        if teacher is None:
            assert hard is not None
            return hard
        mask = batch.get("attention_mask")
        soft = vector_loss(outputs, teacher) if vectors else soft_loss(outputs, teacher, temperature, mask)
        return soft if hard is None else alpha * soft + (1 - alpha) * hard

    return loss


def learnable(task: Task, split: Split) -> bool:
    """Whether the task's own loss can be computed: it has labels, and they label samples one by one.

    Scores of sentence pairs do not survive shuffling: embeddings always follow the original.
    """
    return split.labels is not None and task.name not in ("embedding", "fidelity")
