"""A model as one block: where no blocks repeat, and where its outputs tell what a change does."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from backends.models import LoadedModel


class Whole(nn.Module):
    """The model as a block that is called with batches. What enters `convolutions` is watched too."""

    def __init__(self, model: LoadedModel, convolutions: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.model, self.convolutions = model, tuple(convolutions)
        self.module = model.module

    def forward(self, first: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """`first` is one of the batch's own tensors: blocks are called with what enters them."""
        return self.model.forward(batch)
