"""Weights in groups of a few bits in a graph: which matrices can be stored so, and the nodes that read them then.

    MatMul, Gemm   MatMulNBits (evenly spaced values) or MatMulBnb4 (NF4), and an Add for the bias
    Gather         GatherBlockQuantized

A matrix is stored once, whatever reads it: the head of a language model multiplies by the bytes that the embedding
looks up, through a Reshape that the runtime folds when it loads the file.

    lookups         codes [rows, bytes]                  scales [rows, groups]    zero points [rows, bytes of groups]
    products        codes [outputs, groups, bytes]       the same                 the same
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from backends.onnx import graph as graphs
from backends.onnx.dense import Dense, dense_layers, sibling
from backends.onnx.embeddings import Embedding, embeddings
from backends.quantize import grid as grids
from knowledge.values import LayerFormat

SIZES = (16, 32, 64, 128, 256)  # of a group, that the kernels have
SCALE_BITS = 32
NF4_KIND = 1  # MatMulBnb4's quant_type; 0 is its 4-bit float


@dataclass
class Matrix:
    """A stored float matrix and the nodes that read it."""

    stored: ir.Value
    products: list[Dense] = field(default_factory=list)
    lookups: list[Embedding] = field(default_factory=list)

    @property
    def name(self) -> str:
        return graphs.name_of(self.stored)

    @property
    def rows(self) -> Tensor:
        """[outputs, inputs], or [entries, width] of an embedding."""
        array = graphs.stored(self.stored)
        turned = self.products[0].turned if self.products else True
        return torch.from_numpy(np.array(array if turned else array.T, order="C"))  # a copy: torch wants to own it

    @property
    def obstacle(self) -> str:
        """Why it cannot be stored in groups of a row; empty where it can."""
        if len({p.turned for p in self.products} | {True for _ in self.lookups}) > 1:
            return "is multiplied by as it is and transposed"
        known = {p.node for p in self.products} | {e.node for e in self.lookups}
        others = sorted({node.op_type for node in _readers(self.stored) if node not in known})
        return f"is read by {' and '.join(others)} too" if others else ""


def _readers(value: ir.Value) -> Iterator[ir.Node]:
    """Nodes that read a value, transposed or not."""
    for node, _ in value.uses():
        if node.op_type == "Transpose" and node.domain == "":
            yield from _readers(node.outputs[0])
        else:
            yield node


def matrices(graph: ir.Graph) -> list[Matrix]:
    """Every stored float matrix that products or lookups read, in graph order."""
    found: dict[ir.Value, Matrix] = {}
    for embedding in embeddings(graph):
        found.setdefault(embedding.stored, Matrix(embedding.stored)).lookups.append(embedding)
    for layer in dense_layers(graph):
        found.setdefault(layer.stored, Matrix(layer.stored)).products.append(layer)
    return list(found.values())


# -- evenly spaced values --------------------------------------------------------------------------


@dataclass(frozen=True)
class Blocks:
    """A matrix on evenly spaced values; `grid.quantize` says what the tensors are."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    bits: int
    group_size: int
    symmetric: bool  # every zero point is the middle code, and none is stored

    def __post_init__(self) -> None:
        if self.group_size not in SIZES:
            raise ValueError(f"no kernel has groups of {self.group_size}")
        if self.symmetric and not bool((self.zeros == 2 ** (self.bits - 1)).all()):
            raise ValueError("zero points of a symmetric grid lie in its middle")

    @classmethod
    def nearest(cls, rows: Tensor, bits: int, group_size: int, symmetric: bool) -> Blocks:
        """A matrix rounded to nearest."""
        return cls(*grids.quantize(rows, bits, group_size, symmetric), bits, group_size, symmetric)

    @classmethod
    def on_grid(
        cls, rows: Tensor, scales: Tensor, zeros: Tensor, bits: int, group_size: int, symmetric: bool
    ) -> Blocks:
        """A matrix whose numbers lie on the given grid already, as other ways of rounding leave them."""
        codes = grids.encode(rows, scales, zeros, bits, group_size)
        return cls(codes, scales.float(), zeros.to(torch.uint8), bits, group_size, symmetric)

    @property
    def rows(self) -> Tensor:
        """The numbers that the file will stand for."""
        return grids.dequantize(self.codes, self.scales, self.zeros, self.group_size)

    @property
    def stored_bits(self) -> int:
        return grids.container_bits(self.bits)

    @property
    def format(self) -> LayerFormat:
        zero = 0 if self.symmetric else self.stored_bits
        return LayerFormat(
            bits=self.stored_bits, group_size=self.group_size, scale_bits=SCALE_BITS, zero_bits=zero
        )  # fmt: skip


def store_blocks(matrix: Matrix, blocks: Blocks, accuracy_level: int) -> None:
    """Store a matrix as `blocks` and let everything that read it read those, in place.

    `accuracy_level` is MatMulNBits's: 0 multiplies in float, 4 rounds activations to 8 bits inside the kernel.
    """
    graph, name, bits = graphs.graph_of(_first(matrix)), matrix.name, blocks.stored_bits
    outputs, inputs = blocks.codes.shape
    codes = grids.centered(blocks.codes, blocks.bits, bits) if blocks.symmetric else blocks.codes
    packed = grids.pack_blocks(codes, bits, blocks.group_size)
    if matrix.lookups:
        if inputs % blocks.group_size:
            raise ValueError(f"{name}: rows of a lookup divide into whole groups")
        packed = packed.flatten(1)
    _release(graph, matrix)
    stored = graphs.add_constant(graph, name, _array(packed))
    beside = [graphs.add_constant(graph, sibling(name, "scale"), _array(blocks.scales.float()))]
    if not blocks.symmetric:
        beside.append(graphs.add_constant(graph, sibling(name, "zero"), _array(grids.pack(blocks.zeros, bits))))
    form = {"bits": bits, "block_size": blocks.group_size}
    for lookup in matrix.lookups:
        given = [stored, graphs.input_of(lookup.node, 1), *beside]
        _put(lookup.node, "GatherBlockQuantized", given, None, gather_axis=0, quantize_axis=1, **form)
    for layer in matrix.products:
        weight = _as_blocks(layer.node, stored, blocks) if matrix.lookups else stored
        given = [graphs.input_of(layer.node, 0), weight, *beside]
        form |= {"K": inputs, "N": outputs, "accuracy_level": accuracy_level}
        _put(layer.node, "MatMulNBits", given, layer.bias, **form)
    _drop_transposes(matrix)


def _as_blocks(node: ir.Node, stored: ir.Value, blocks: Blocks) -> ir.Value:
    """Rows of bytes as MatMulNBits wants them."""
    shape = (len(blocks.codes), blocks.scales.shape[1], blocks.group_size * blocks.stored_bits // 8)
    wanted = graphs.add_constant(graphs.graph_of(node), "blocks", np.array(shape, np.int64))
    return graphs.add_before(node, "Reshape", [stored, wanted])[0]


# -- NF4 -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nf4Blocks:
    """A matrix as NF4 codes [outputs, inputs]; each group's scale [outputs, groups] is its largest magnitude."""

    codes: Tensor
    scales: Tensor
    group_size: int

    @classmethod
    def nearest(cls, rows: Tensor, group_size: int) -> Nf4Blocks:
        """A matrix rounded to the nearest values; rows divide into whole groups."""
        return cls(*grids.quantize_nf4(rows, group_size), group_size)

    @property
    def rows(self) -> Tensor:
        """The numbers that the file will stand for."""
        return grids.dequantize_nf4(self.codes, self.scales, self.group_size)

    @property
    def format(self) -> LayerFormat:
        return LayerFormat(bits=4, group_size=self.group_size, scale_bits=SCALE_BITS)


def store_nf4(matrix: Matrix, blocks: Nf4Blocks) -> None:
    """Store a matrix that only products read as `blocks`, in place."""
    graph, name = graphs.graph_of(_first(matrix)), matrix.name
    outputs, inputs = blocks.codes.shape
    if matrix.lookups or inputs % blocks.group_size:
        raise ValueError(f"{name}: NF4 is for products whose rows divide into whole groups")
    _release(graph, matrix)
    stored = graphs.add_constant(graph, name, _array(grids.pack_high_first(blocks.codes)))
    scales = graphs.add_constant(graph, sibling(name, "scale"), _array(blocks.scales.flatten()))
    for layer in matrix.products:
        given = [graphs.input_of(layer.node, 0), stored, scales]
        form = {"K": inputs, "N": outputs, "block_size": blocks.group_size, "quant_type": NF4_KIND}
        _put(layer.node, "MatMulBnb4", given, layer.bias, **form)
    _drop_transposes(matrix)


# -- nodes -----------------------------------------------------------------------------------------


def _array(tensor: Tensor) -> np.ndarray:
    found: np.ndarray = tensor.cpu().numpy()
    return found


def _first(matrix: Matrix) -> ir.Node:
    return (matrix.products or matrix.lookups)[0].node


def _release(graph: ir.Graph, matrix: Matrix) -> None:
    """Free the float matrix's name for its codes."""
    del graph.initializers[matrix.name]
    if matrix.stored.is_graph_input():  # files of old exporters list their weights among the inputs
        graph.inputs.remove(matrix.stored)
    matrix.stored.name = f"{matrix.name}_float"


def _drop_transposes(matrix: Matrix) -> None:
    """Remove what turned the float matrix for products that read its codes now."""
    for node in {node for node, _ in matrix.stored.uses()}:
        if not any(output.uses() for output in node.outputs):
            graphs.graph_of(node).remove(node, safe=True)


def _put(node: ir.Node, kind: str, inputs: list[ir.Value], bias: ir.Value | None, **attributes: int) -> None:
    """Put one of the runtime's own operators in the place of a node, with an addition where there is a bias."""
    y = graphs.add_before(node, kind, inputs, domain=graphs.MICROSOFT, like=node.outputs[0], **attributes)[0]
    if bias is not None:
        y = graphs.add_before(node, "Add", [y, bias], like=node.outputs[0])[0]
    graphs.replace(node, [y])
