"""Different layers in different formats: experts narrower than the rest, sensitive layers wider."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from knowledge.layers import BoolColumn, LayerTable
from knowledge.techniques.base import Choices, Need, Range
from knowledge.techniques.groups import ASYMMETRIC_GAIN, SCALE_BITS, GroupWeights, Symmetric, grouped_width
from knowledge.techniques.units import unit_names, whole_experts

GROUPS = (128, 64, 32, 16)  # sizes that a layer may be given; a smaller one than its bytes allow is always better


class Form(NamedTuple):
    """How the layers of a unit are stored; a group size of 0 is a scale for each channel."""

    bits: int
    group_size: int = 0


FLOAT, PER_CHANNEL = Form(32), Form(8)  # of convolutions and recurrent layers


class ExpertsInt4(GroupWeights):
    """Store the weights of every expert in 4 bits, in groups of a row; attention layers in `dense_bits`.

    Each expert is rounded on its own. The router stays in float: a token sent to another expert costs more than any
    rounding. Experts hold most of such a model's bytes and few of them work on a token: memory is what is won, and time
    too where the float model copies the matrices of a token's experts before it multiplies. The rows of experts must
    divide into whole groups. arXiv:2310.16795 on how well experts bear few bits.
    """

    id: ClassVar[str] = "experts_int4"
    node_bytes: ClassVar[Mapping[str, int]] = {"linear": 280, "embedding": 280}
    paper: ClassVar[str] = "arXiv:2310.16795"
    architectures: ClassVar[frozenset[str]] = frozenset({"moe"})
    stacks: ClassVar[bool] = True

    symmetric: Symmetric = True
    dense_bits: Annotated[Literal[8, 32], Choices(8, 32)] = 8

    @classmethod
    def dense(cls, layers: LayerTable) -> BoolColumn:
        chosen: BoolColumn = layers.kind == "experts"
        return chosen

    def body(self, layers: LayerTable) -> BoolColumn:
        return whole_experts(layers, self.group_size)

    def attention(self, layers: LayerTable) -> BoolColumn:
        """The other dense layers, where they are stored in fewer bits too."""
        plain = super().dense(layers) & (layers.role != "router") & (grouped_width(layers) >= self.group_size)
        return plain if self.dense_bits < 32 else np.zeros(len(layers), dtype=bool)

    def touches(self, layers: LayerTable) -> BoolColumn:
        return super().touches(layers) | self.attention(layers)

    def requirement(self) -> str:
        return f"experts at least {self.group_size} wide"

    def zero_bits(self, bits: int) -> int:
        return 0 if self.symmetric else bits

    def body_formatted(self, layers: LayerTable) -> LayerTable:
        return self.grouped(super().body_formatted(layers), self.attention(layers), self.dense_bits)

    def strength(self) -> float:
        return super().strength() * (ASYMMETRIC_GAIN if self.symmetric else 1.0)


class MixedPrecision(GroupWeights):
    """Give each layer the bits that its measured loss is worth, within the size of `share` of the weights narrow.

    Dense layers and experts: 8, 4 or 2 bits in groups (3 would take the bytes of 4). Convolutions and recurrent layers,
    which have no kernel for fewer: 8 bits per channel, or float. Each layer is narrowed alone and the change of the
    outputs measured on calibration data: the divergence of the distributions, or the squared difference of vectors.
    The measurements are kept, and an integer program picks the forms of all layers with the least sum of losses; other
    sizes of the same model are solved without measuring again. Losses of different layers count as independent, so that
    they add up (arXiv:1911.03852, section 3, which ranks by curvature instead of measuring). With a `max_loss` the file
    as a whole is judged too, for it rounds more than weights: the program gets less to spend, or more, in a few files.
    Zeros have a program and a `max_loss` of their own, in `wanda` and `sparsegpt`: in the file they take the bytes of
    other numbers.

    The layers may take the bytes of `share` of the weights in 4 bits (8 for convolutions and recurrent layers), those
    nearest to the middle of the model, and the others in 8 (float), in groups of `group_size`. The estimate is that
    choice; the program finds a better one of at most its bytes, in which each layer has groups of its own.
    """

    id: ClassVar[str] = "mixed_precision"
    node_bytes: ClassVar[Mapping[str, int]] = {"linear": 280, "embedding": 280, "conv": 900, "lstm": 100}
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    paper: ClassVar[str] = "arXiv:1911.03852"
    architectures: ClassVar[frozenset[str]] = frozenset({"transformer", "moe", "cnn", "rnn"})
    dial: ClassVar[str] = "share"
    stacks: ClassVar[bool] = True

    share: Annotated[float, Field(gt=0, le=1), Range(0.5, 1.0, step=0.1)] = 0.8
    max_loss: Annotated[
        float | None,
        Field(
            gt=0,
            description="what the file may lose on calibration data, in nats or as a share of the squared outputs: the "
            "smallest file within it; without it `share` sets the size",
        ),
    ] = None

    # -- which layers ------------------------------------------------------------------------------

    @classmethod
    def dense(cls, layers: LayerTable) -> BoolColumn:
        experts: BoolColumn = (layers.kind == "experts") & layers.owned
        chosen: BoolColumn = (super().dense(layers) & (layers.role != "router")) | experts
        return chosen

    @staticmethod
    def per_channel(layers: LayerTable) -> BoolColumn:
        """Layers that are stored with a scale for each channel."""
        chosen: BoolColumn = np.isin(layers.kind, ("conv", "lstm"))
        return chosen

    def body(self, layers: LayerTable) -> BoolColumn:
        wide: BoolColumn = super().body(layers) & (layers.kind != "experts")
        return wide | whole_experts(layers, self.group_size) | self.per_channel(layers)

    def requirement(self) -> str:
        return f"{super().requirement()}, convolutions or recurrent layers"

    def units(self, layers: LayerTable) -> dict[str, NDArray[np.int64]]:
        """Rows of the body by what is stored in one form, in the model's order."""
        found: dict[str, list[int]] = {}
        names = unit_names(layers)
        for row in np.flatnonzero(self.body(layers)):
            found.setdefault(names[row], []).append(int(row))
        return {name: np.array(rows, dtype=np.int64) for name, rows in found.items()}

    # -- what becomes of them ----------------------------------------------------------------------

    def zero_bits(self, bits: int) -> int:
        return bits

    def stored(self, layers: LayerTable, rows: BoolColumn | NDArray[np.int64], form: Form) -> LayerTable:
        """The table with chosen rows of the body in a form."""
        if form == FLOAT:
            return layers
        where = np.zeros(len(layers), dtype=bool)
        where[rows] = True
        return layers.change(
            where,
            bits=form.bits,
            group_size=form.group_size,
            scale_bits=SCALE_BITS,
            zero_bits=self.zero_bits(form.bits),
        )

    def forms(self, layers: LayerTable) -> dict[str, dict[Form, float]]:
        """The forms that each unit may have, and its bytes in them.

        8, 4 and 2 bits in the largest groups, 4 in the next smaller ones too. Larger groups that save nothing, as those
        of 128 of rows of 192 do, are left out: smaller ones are more exact.
        """
        channels, body = self.per_channel(layers), self.body(layers)
        units = self.units(layers)
        sizes = {
            form: self.stored(layers, body & (channels == (form.group_size == 0)), form).row_bytes
            for form in (FLOAT, PER_CHANNEL, *(Form(bits, group) for bits in (8, 4, 2) for group in GROUPS))
        }
        found: dict[str, dict[Form, float]] = {}
        for name, rows in units.items():
            taken = {form: float(size[rows].sum()) for form, size in sizes.items()}
            if channels[rows[0]]:
                chosen = [FLOAT, PER_CHANNEL]
            else:
                fitting = [
                    g for g in GROUPS if layers.kind[rows[0]] != "experts" or not (layers.inputs[rows] % g).any()
                ]
                useful = [
                    g
                    for i, g in enumerate(fitting)
                    if all(taken[Form(4, g)] < taken[Form(4, s)] for s in fitting[i + 1 :])
                ]
                chosen = [Form(8, useful[0]), *(Form(4, g) for g in useful[:2]), Form(2, useful[0])]
            found[name] = {form: taken[form] for form in chosen}
        return found

    def expected(self, layers: LayerTable) -> dict[str, Form]:
        """The form of each unit before anything is measured: narrow from the middle of the model outwards, until they
        hold `share` of the weights; first and last layers are the usual sensitive ones."""
        units, channels = self.units(layers), self.per_channel(layers)
        names = list(units)
        middle = (len(names) - 1) / 2
        outwards = sorted(range(len(names)), key=lambda i: abs(i - middle))
        weights = np.array([layers.weights[units[names[i]]].sum() for i in outwards])
        narrow = np.cumsum(weights) - weights / 2 <= self.share * weights.sum()
        chosen = {names[i]: bool(is_narrow) for i, is_narrow in zip(outwards, narrow, strict=True)}
        grouped, whole = (Form(8, self.group_size), Form(4, self.group_size)), (FLOAT, PER_CHANNEL)
        return {name: (whole if channels[rows[0]] else grouped)[chosen[name]] for name, rows in units.items()}

    def expected_bytes(self, layers: LayerTable) -> dict[str, float]:
        """Bytes of each unit in the form that is expected: their sum is what the program may use."""
        sizes = self.body_formatted(layers).row_bytes
        return {name: float(sizes[rows].sum()) for name, rows in self.units(layers).items()}

    def body_formatted(self, layers: LayerTable) -> LayerTable:
        units, forms = self.units(layers), self.expected(layers)
        changed = layers
        for form in sorted(set(forms.values())):
            rows = [units[name] for name in units if forms[name] == form]
            changed = self.stored(changed, np.concatenate(rows), form)
        return changed

    def strength(self) -> float:
        return super().strength() * self.share**2
