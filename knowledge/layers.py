"""A model as numbers: one row per weight-bearing layer, one numpy column per fact.

    path                          kind    role  block outputs inputs kernel groups copies bits positions …
    stem.0                        conv    stem     -1      32      1      9      1      1   32      64.0
    layers.0.c1                   conv    body      0      32     32      9      1      1   32      64.0
    model.layers.0.mlp.up_proj    linear  ffn_up    0     512    192      1      1      1   32     128.0

Techniques change tables without touching a weight, so that the size of a chain is known before anything has run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

Family = Literal["transformer", "cnn", "rnn", "moe"]
Kind = Literal["linear", "conv", "embedding", "lstm", "norm", "experts", "complex", "other"]

BoolColumn = NDArray[np.bool_]

# column -> (numpy dtype, default). A default of None makes the column required.
COLUMNS: dict[str, tuple[Any, Any]] = {
    "path": (object, None),  # module path inside the model
    "kind": (object, None),  # one of Kind
    "role": (object, "body"),  # see ROLES
    "block": (np.int64, -1),  # index of the repeated block; -1 outside
    "outputs": (np.int64, None),  # output features or channels of one copy
    "inputs": (np.int64, 1),  # input features or channels, before grouping
    "kernel": (np.int64, 1),  # product of the spatial kernel sizes
    "groups": (np.int64, 1),  # convolution groups
    "copies": (np.int64, 1),  # experts, or real and imaginary parts, in one parameter
    "bias": (np.int64, 0),  # bias numbers, all copies together
    "buffers": (np.int64, 0),  # stored numbers that are no parameters (batch-norm statistics)
    "positions": (np.float64, 0.0),  # times each weight is used per sample
    "rank": (np.int64, 0),  # inner width of a two-factor layer; 0: one full matrix
    "bits": (np.int64, 32),  # of one weight
    "group_size": (np.int64, 0),  # weights of a row per scale; 0: one scale per output channel; -1: one per tensor
    "scale_bits": (np.int64, 0),  # of one scale; 0: no scale
    "zero_bits": (np.int64, 0),  # of one zero point
    "bias_bits": (np.int64, 32),  # of biases and buffers
    "density": (np.float64, 1.0),  # share of weights that are not zero
    "pattern": (object, "dense"),  # dense, unstructured, or "N:M"
    "tied_to": (object, ""),  # path of the layer that owns these weights
    "folds_into": (object, ""),  # path of the layer that an exporter merges this norm into
    "exported": (np.bool_, True),  # the model's output depends on it; exporters drop what does not
}

SHAPE = {"outputs", "inputs", "kernel", "groups", "copies", "rank"}  # columns that say how many weights there are
ROLES = [
    "stem",
    "body",
    "head",
    "token_embedding",
    "position_embedding",
    "norm",
    "attention_q",
    "attention_k",
    "attention_v",
    "attention_qkv",
    "attention_o",
    "ffn_up",
    "ffn_gate",
    "ffn_down",
    "router",
    "input",
    "hidden",
]


@dataclass(frozen=True)
class ModelInfo:
    """What a table cannot say by rows: the model's name, family, task and widths. Zero: does not apply."""

    name: str
    family: Family
    task: str
    subfamily: str = ""  # kind of model inside the family: encoder, residual-cnn, … (`conditions.SUBFAMILIES`)
    architecture: str = ""  # the class that the model's own library gives it
    vocab_size: int = 0
    hidden_size: int = 0
    ffn_size: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    blocks: int = 0
    experts: int = 0
    experts_per_token: int = 0
    classes: int = 0
    max_length: int = 0
    seq_len: int = 0  # of the sample that `positions` was taken with
    image_size: tuple[int, int, int] = (0, 0, 0)  # channels, height, width
    typical: bool = False  # no model was given: this one stands for its family
    note: str = ""  # what is to be said of its files: weights that were left out


@dataclass(frozen=True, eq=False)
class LayerTable:
    """A frozen table of layers; every change returns a new one.

    >>> t = LayerTable.of([dict(path="fc", kind="linear", outputs=10, inputs=64, bias=10, positions=1)],
    ...                   ModelInfo("m", "cnn", "image-classification"))
    >>> t.parameters, t.macs, t.stored_bytes
    (650, 640, 2600)
    >>> t.change(t.kind == "linear", bits=8, scale_bits=32).stored_bytes  # 640 + 10 scales + 10 biases
    720
    """

    info: ModelInfo
    columns: Mapping[str, NDArray[Any]] = field(repr=False)

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], info: ModelInfo) -> LayerTable:
        """A table from one mapping per layer; raises ValueError on an unknown or missing column."""
        columns = {}
        for row in rows:
            if unknown := set(row) - set(COLUMNS):
                raise ValueError(f"layer {row.get('path')}: unknown columns {sorted(unknown)}")
        for name, (dtype, default) in COLUMNS.items():
            if default is None and (bare := [r.get("path") for r in rows if name not in r]):
                raise ValueError(f"layer {bare[0]}: column {name!r} is missing")
            column = np.empty(len(rows), dtype=dtype)
            column[:] = [row.get(name, default) for row in rows]
            columns[name] = column
        return cls(info, columns)

    def rows(self) -> list[dict[str, Any]]:
        """The table as plain mappings, for JSON and for rebuilding."""
        names = list(COLUMNS)
        listed = [self.columns[n].tolist() for n in names]
        return [dict(zip(names, values, strict=True)) for values in zip(*listed, strict=True)]

    def __len__(self) -> int:
        return len(self.columns["path"])

    def __post_init__(self) -> None:
        self.__dict__.update(self.columns)  # a column is an attribute: estimates read them thousands of times

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> NDArray[Any]: ...

    def index(self, path: str) -> int:
        """Row of the layer at `path`; raises KeyError."""
        found = np.flatnonzero(self.path == path)
        if not len(found):
            raise KeyError(path)
        return int(found[0])

    # -- what the rows add up to ------------------------------------------------------------------

    @cached_property
    def weights(self) -> NDArray[np.int64]:
        """Weight numbers per row, no biases: copies × outputs × inputs/groups × kernel, or rank × (both sides)."""
        fan_in = self.inputs // self.groups * self.kernel
        full = self.outputs * fan_in
        factors = self.rank * (self.outputs + fan_in)
        return cast("NDArray[np.int64]", self.copies * np.where(self.rank > 0, factors, full))

    @cached_property
    def owned(self) -> BoolColumn:
        """Rows that store their own weights (a tied row stores its bias only)."""
        return cast("BoolColumn", self.tied_to == "")

    @property
    def parameters(self) -> int:
        """Trainable numbers, tied weights once."""
        return int((self.weights * self.owned + self.bias).sum())

    @cached_property
    def row_macs(self) -> NDArray[np.float64]:
        """Multiply–accumulates per row and sample. Products of two activations are not counted."""
        return cast("NDArray[np.float64]", self.weights * self.positions)

    @property
    def macs(self) -> int:
        """Multiply–accumulates of the weight-bearing layers for one sample."""
        return int(self.row_macs.sum())

    @cached_property
    def scales(self) -> NDArray[np.int64]:
        """Scales per row: one per group of weights, per output channel or per tensor."""
        per_channel = self.copies * (self.outputs + self.rank)  # a factored layer has two matrices
        counts = np.where(self.group_size < 0, self.copies, per_channel)
        if (grouped := self.group_size > 0).any():
            counts = np.where(grouped, self._by_matrix(lambda rows, groups: rows * groups), counts)
        return cast("NDArray[np.int64]", np.where(self.scale_bits > 0, counts, 0))

    def _by_matrix(self, count: Callable[[Any, Any], Any]) -> Any:
        """`count` of (rows, groups in one of them), added up over the one or two matrices of every layer's copies."""
        size = np.maximum(self.group_size, 1)
        groups = -(-np.maximum(self.inputs // self.groups * self.kernel, 1) // size)
        whole, first, second = count(self.outputs, groups), count(self.rank, groups), 0
        if self.rank.any():
            second = count(self.outputs, -(-self.rank // size))
        return self.copies * np.where(self.rank > 0, first + second, whole)

    @cached_property
    def row_bytes(self) -> NDArray[np.float64]:
        """Stored bytes per row: weights, scales, zero points, biases. Zeros are stored densely, as in ONNX.

        Groups are stored whole, the last one of a row filled up, and the zero points of each row in whole bytes.
        """
        scales = self.scales
        bits = self.weights * self.bits + scales * (self.scale_bits + self.zero_bits)
        if (grouped := (self.group_size > 0) & (scales > 0)).any():
            size, zero = self.group_size, self.zero_bits
            filled = scales * (size * self.bits + self.scale_bits)
            zeros = self._by_matrix(lambda rows, groups: rows * (-(-groups * zero // 8) * 8))
            bits = np.where(grouped, filled + zeros, bits)
        return cast("NDArray[np.float64]", (bits * self.owned + (self.bias + self.buffers) * self.bias_bits) / 8)

    @property
    def stored_bytes(self) -> int:
        """Bytes that the file needs for this model's numbers."""
        return int(np.ceil(self.row_bytes.sum()))

    @property
    def sparsity(self) -> float:
        """Share of zero weights among all owned weights."""
        weights = self.weights * self.owned
        return float(1 - (weights * self.density).sum() / max(weights.sum(), 1))

    @property
    def embedding_share(self) -> float:
        """Share of the stored bytes that token and position embeddings take."""
        return float(self.row_bytes[self.kind == "embedding"].sum() / max(self.row_bytes.sum(), 1))

    # -- changing it -------------------------------------------------------------------------------

    def change(self, where: BoolColumn | NDArray[np.int64], **values: Any) -> LayerTable:
        """A table in which the chosen rows have new column values (scalars, or one value per chosen row)."""
        columns = dict(self.columns)
        for name, value in values.items():
            if name not in COLUMNS:
                raise ValueError(f"unknown column {name!r}")
            columns[name] = columns[name].copy()
            columns[name][where] = value
        changed = LayerTable(self.info, columns)
        if "weights" in self.__dict__ and not values.keys() & SHAPE:
            changed.__dict__["weights"] = self.weights  # most techniques change other columns
        return changed

    def keep(self, where: BoolColumn) -> LayerTable:
        """Only the chosen rows."""
        return LayerTable(self.info, {name: column[where] for name, column in self.columns.items()})

    def with_info(self, **values: Any) -> LayerTable:
        """The same rows under changed model facts."""
        return LayerTable(dataclasses.replace(self.info, **values), self.columns)

    def choose(self, test: Callable[[str], bool]) -> BoolColumn:
        """Rows whose path passes `test`."""
        return np.array([test(p) for p in self.path], dtype=bool)


def table_to_json(layers: LayerTable) -> dict[str, Any]:
    """A table as JSON values: the model's facts, and one list per column that is not all default."""
    columns = {}
    for name, (_, default) in COLUMNS.items():
        values = layers.columns[name].tolist()
        if default is None or any(v != default for v in values):
            columns[name] = values
    return {"info": dataclasses.asdict(layers.info), "columns": columns}


def table_from_json(data: Mapping[str, Any]) -> LayerTable:
    """The table that `table_to_json` wrote."""
    info = dict(data["info"])
    info["image_size"] = tuple(info["image_size"])
    names = list(data["columns"])
    rows = [dict(zip(names, values, strict=True)) for values in zip(*data["columns"].values(), strict=True)]
    return LayerTable.of(rows, ModelInfo(**info))
