"""Weights in groups of a few bits: each group of a row has a scale, activations stay in float."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from knowledge.layers import BoolColumn, LayerTable
from knowledge.techniques.base import Choices
from knowledge.techniques.quantize import Quantization
from knowledge.values import Refusal

GroupSize = Annotated[
    Literal[16, 32, 64, 128, 256],
    Choices(128, 64, 32),
    Field(description="weights of a row that share a scale; lookups in embeddings have at most 64"),
]
AccuracyLevel = Annotated[
    Literal[0, 4],
    Field(
        description="of products with integers: 4 rounds activations to 8 bits inside the kernel; 0 keeps them in "
        "float, slower with 4-bit weights and far slower with 2 and 8 bits"
    ),
]
Symmetric = Annotated[bool, Choices(False, True), Field(description="without a zero point in each group")]
SCALE_BITS = 32  # the runtime's scales have the type of the activations
LOOKUP_GROUPS = (16, 32, 64)  # that an embedding lookup in groups may have
ASYMMETRIC_GAIN = 1.3  # MiniLM in 4 bits: 0.033 of the cosine lost without zero points, 0.025 with (groups of 32)


def rounding_loss(bits: float, group_size: int) -> float:
    """How much rounding disturbs a layer, against 4 bits in groups of 128.

    The power of the rounding error falls fourfold with each bit, and grows with the largest of the numbers that share a
    scale, which goes with the logarithm of how many they are.

    >>> [round(rounding_loss(b, 128), 3) for b in (8, 4, 3)], round(rounding_loss(4, 32), 3)
    ([0.004, 1.0, 4.0], 0.714)
    """
    return float(4.0 ** (4 - bits) * math.log(group_size) / math.log(128))


class GroupWeights(Quantization):
    """Base of the group-wise forms: dense layers in few bits; embeddings and the head in `embedding_bits`.

    Both ends of a model are its most sensitive layers, and most of its bytes where the vocabulary is large: 8 bits
    there cost next to nothing, 32 leaves them alone. A head that reads the embedding again shares its numbers. Layers
    narrower than one group stay as they are, and so do routers: a token sent to another expert costs more than any
    rounding.
    """

    architectures: ClassVar[frozenset[str]] = frozenset({"transformer", "moe"})
    stacks: ClassVar[bool] = False  # whether it stores stacks of experts too

    group_size: GroupSize = 128
    embedding_bits: Annotated[
        Literal[8, 4, 32],
        Choices(8, 4, 32),
        Field(description="bits of embeddings and head, the sensitive ends of a model; 32 leaves them alone"),
    ] = 8
    accuracy_level: AccuracyLevel = 4

    @classmethod
    def space_for(cls, layers: LayerTable) -> dict[str, Any]:
        """Group sizes that fit into the widest layer, and the embeddings where there are any."""
        space: dict[str, Any] = cls.space()
        widest = cls.widest(layers)
        space["group_size"] = Choices(*(g for g in space["group_size"] if g <= widest)) or space["group_size"]
        if not (layers.kind == "embedding").any():
            space.pop("embedding_bits")
        return space

    # -- which layers ------------------------------------------------------------------------------

    @classmethod
    def dense(cls, layers: LayerTable) -> BoolColumn:
        """Layers of the kind that this technique is about, wide enough or not."""
        chosen: BoolColumn = (layers.kind == "linear") & layers.owned & ~np.isin(layers.role, ("head", "router"))
        return chosen

    @classmethod
    def widest(cls, layers: LayerTable) -> int:
        """Inputs of the widest of them; 0 where there is none."""
        return int(grouped_width(layers)[cls.dense(layers)].max(initial=0))

    def body(self, layers: LayerTable) -> BoolColumn:
        """Those that are wide enough for a group."""
        chosen: BoolColumn = self.dense(layers) & (grouped_width(layers) >= self.group_size)
        return chosen

    def end_groups(self, layers: LayerTable) -> NDArray[np.int64]:
        """Group size of every row at the model's ends; 0 elsewhere and where none fits."""
        embedding = layers.kind == "embedding"
        found = np.zeros(len(layers), dtype=np.int64)
        if self.embedding_bits == 32:
            return found
        for size in LOOKUP_GROUPS:
            if size <= self.group_size:
                found[embedding & (layers.inputs % size == 0)] = size
        found[(layers.kind == "linear") & (layers.role == "head") & (layers.inputs >= self.group_size)] = (
            self.group_size
        )
        tied = layers.tied_to != ""
        if tied.any():  # one matrix in the file, in the embedding's groups
            owners = dict(zip(layers.path.tolist(), found.tolist(), strict=True))
            found[tied] = [owners.get(owner, 0) for owner in layers.tied_to[tied]]
        return found

    def touches(self, layers: LayerTable) -> BoolColumn:
        return self.body(layers) | (self.end_groups(layers) > 0)

    def requirement(self) -> str:
        return f"dense layers at least {self.group_size} wide"

    def experts_in_float(self) -> tuple[str, str] | None:
        """Why stacks of experts stay in float: a rule, and what would be needed; None where that was asked for."""
        if self.stacks:
            return "experts-whole-groups", f"rows of whole groups of {self.group_size} in all stacks of a block"
        return "groups-stacked-experts", "a matrix for each product; gptq, awq and experts_int4 store stacks"

    def refusals(self, layers: LayerTable) -> Iterator[Refusal]:
        widest, stacks = self.widest(layers), layers.inputs[self.dense(layers) & (layers.kind == "experts")]
        if layers.info.family not in self.architectures or self.body(layers).any():
            yield from super().refusals(layers)
        elif widest >= self.group_size and (stacks % self.group_size).any():
            fitting = [size for size in (128, 64, 32, 16) if not (stacks % size).any()]
            yield Refusal(
                technique=self.id,
                rule="experts-whole-groups",
                observed=f"experts {' and '.join(map(str, sorted(set(stacks.tolist()))))} wide",
                required=f"rows of whole groups of {self.group_size}",
                remedy=f"set {self.id}.group_size to {fitting[0]}" if fitting else "use int8_dynamic",
            )
        elif widest and not (len(stacks) and widest >= self.group_size):
            fitting = [g for g in (16, 32, 64, 128) if g <= widest]
            yield Refusal(
                technique=self.id,
                rule="quantize-group-too-large",
                observed=f"layers at most {widest} wide",
                required=f"one whole group of {self.group_size}",
                remedy=f"set {self.id}.group_size to {fitting[-1]}" if fitting else "use int8_dynamic",
            )
        else:
            yield Refusal(
                technique=self.id,
                rule="technique-no-layer",
                observed="no layer that it can change",
                required=self.requirement(),
            )

    # -- what becomes of them ----------------------------------------------------------------------

    def zero_bits(self, bits: int) -> int:
        """Bits of a group's zero point beside weights of `bits`; 0 where there is none."""
        return 0

    def body_formatted(self, layers: LayerTable) -> LayerTable:
        """The table with the dense layers as they will be stored."""
        return self.grouped(layers, self.body(layers), 4)

    def grouped(self, layers: LayerTable, where: BoolColumn, bits: int) -> LayerTable:
        """The table with the chosen layers in groups of `bits` a weight."""
        zero = self.zero_bits(bits)
        return layers.change(where, bits=bits, group_size=self.group_size, scale_bits=SCALE_BITS, zero_bits=zero)

    def formatted(self, layers: LayerTable) -> LayerTable:
        groups = self.end_groups(layers)
        ends = groups > 0
        changed = self.grouped(self.body_formatted(layers), ends, self.embedding_bits)
        return changed.change(ends, group_size=groups[ends])

    def strength(self) -> float:
        return rounding_loss(4, self.group_size)


def grouped_width(layers: LayerTable) -> NDArray[np.int64]:
    """Numbers in a row that groups divide: the inputs, or the smaller side of the second factor."""
    return np.where(layers.rank > 0, np.minimum(layers.rank, layers.inputs), layers.inputs).astype(np.int64)


class IntegerGroups(GroupWeights):
    """Base of the forms with evenly spaced values: `bits` a weight, with a zero point for each group or without.

    The runtime packs 2, 4 and 8 bits: weights of 3 bits ship in 4-bit containers, and count as such.
    """

    node_bytes: ClassVar[Mapping[str, int]] = {"linear": 280, "embedding": 280}  # of which 100 name zero points

    bits: Annotated[
        Literal[8, 4, 3, 2], Choices(4, 8, 2), Field(description="of one weight; 3 bits are stored in 4")
    ] = 4
    symmetric: Symmetric = False

    def zero_bits(self, bits: int) -> int:
        return 0 if self.symmetric else bits

    def body_formatted(self, layers: LayerTable) -> LayerTable:
        return self.grouped(layers, self.body(layers), 4 if self.bits == 3 else self.bits)

    def strength(self) -> float:
        return rounding_loss(self.bits, self.group_size) * (ASYMMETRIC_GAIN if self.symmetric else 1.0)


class WeightOnly(IntegerGroups):
    """Store dense weights in groups of `group_size` with `bits` a weight, rounded to nearest; no data are needed.

    Scales cost bits too: 4-bit weights in groups of 128 with fp32 scales and zero points take 4.28. Memory-bound work
    gets faster with the bytes, as decoding one request at a time does (arXiv:2306.00978, section 4.1); large batches do
    not.
    """

    id: ClassVar[str] = "weight_only"
    paper: ClassVar[str] = "arXiv:2306.00978"


class Nf4(GroupWeights):
    """Store dense weights as indices into 16 values that suit a normal distribution, in groups with an fp32 scale.

    No data are needed, and no zero points; arXiv:2305.14314, section 3, derives the values. In ONNX Runtime its
    kernel is right and slow: for size only. Rows must divide into whole groups.
    """

    id: ClassVar[str] = "nf4"
    node_bytes: ClassVar[Mapping[str, int]] = {"linear": 170, "embedding": 190}
    paper: ClassVar[str] = "arXiv:2305.14314"

    group_size: GroupSize = 64

    def body(self, layers: LayerTable) -> BoolColumn:
        whole = (layers.inputs % self.group_size == 0) & (layers.rank % self.group_size == 0)  # of both factors' rows
        chosen: BoolColumn = super().body(layers) & whole
        return chosen

    def requirement(self) -> str:
        return f"dense layers whose width is a multiple of {self.group_size}"
