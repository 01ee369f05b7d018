"""Rows of an ONNX graph, an operator at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir

from backends.onnx import graph as graphs
from backends.onnx_claims import SMALL, Claims, Row, input_at
from backends.onnx_shapes import known_sizes, last_size
from backends.onnx_stored import (
    CONVS,
    DENSE,
    GROUPED,
    NORMS,
    RECURRENT,
    grouped_sizes,
    layer_path,
    stored,
)


class Reader(Claims):
    """Walks a graph once and collects its rows."""

    def rows(self) -> list[Row]:
        """All rows, in graph order; leftovers last."""
        found = [row for node in self.graph for row in self._of(node)]
        return found + list(self.left_over())

    def _of(self, node: ir.Node) -> Iterator[Row]:
        kind = node.op_type
        if kind in CONVS:
            yield from self._conv(node, *CONVS[kind])
        elif kind in DENSE:
            yield from self._dense(node, *DENSE[kind])
        elif kind in GROUPED:
            yield from self._blocks(node)
        elif kind == "QMoE":
            yield from self._experts(node)
        elif kind in ("Gather", "GatherND", "GatherBlockQuantized"):
            yield from self._lookup(node)
        elif kind in RECURRENT:
            yield from self._recurrent(node)
        elif kind in NORMS:
            yield from self._norm(node)
        elif kind == "Mul":
            yield from self._scaling(node)

    def _conv(self, node: ir.Node, weight_at: int, bias_at: int | None) -> Iterator[Row]:
        weight = stored(node.inputs[weight_at])
        if weight is None or len(weight.sizes) < 3:
            return
        outputs, inputs, *kernel = weight.sizes
        groups = int(graphs.attribute(node, "group", 1))
        if node.op_type == "ConvTranspose":
            outputs, inputs = inputs * groups, outputs // groups
        if node.op_type == "QLinearConv":
            weight.scale, weight.zero = node.inputs[4], node.inputs[5]
        shape = {
            "kind": "conv",
            "outputs": outputs,
            "inputs": inputs * groups,
            "kernel": math.prod(kernel),
            "groups": groups,
        }
        pixels = known_sizes(node.outputs[0])
        positions = float(math.prod(pixels[2:])) if len(pixels) > 2 else self.fallback
        yield from self.row(weight, node, shape, positions, self.bias(input_at(node, bias_at)))

    def _dense(self, node: ir.Node, weight_at: int, bias_at: int | None) -> Iterator[Row]:
        weight = stored(input_at(node, weight_at))
        if weight is None or len(weight.sizes) not in (2, 3):
            return
        transposed = node.op_type == "Gemm" and bool(graphs.attribute(node, "transB", 0))
        *copies, inputs, outputs = weight.sizes
        if transposed:
            inputs, outputs = outputs, inputs
        if node.op_type in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul"):
            at = 3 if node.op_type == "MatMulIntegerToFloat" else 2
            weight.scale, weight.zero = input_at(node, at), input_at(node, at + (2 if at == 3 else 1))
        positions = self.uses(node.outputs[0], outputs)
        shape: Row = {"kind": "linear", "outputs": outputs, "inputs": inputs}
        if copies:
            shape |= {"kind": "experts", "copies": copies[0]}
            positions /= copies[0]
        bias = self.bias(input_at(node, bias_at)) or self.added(node.outputs[0], outputs)
        yield from self.row(weight, node, shape, positions, bias)

    def _blocks(self, node: ir.Node) -> Iterator[Row]:
        """MatMulNBits and MatMulBnb4: packed weights, a scale for each group, zero points packed alike or none."""
        weight, sizes = stored(node.inputs[1]), grouped_sizes(node)
        if weight is None or sizes is None:
            return
        outputs, inputs = sizes
        shape: Row = {"kind": "linear", "outputs": outputs, "inputs": inputs}
        shape |= self.groups(node, outputs, inputs, 32, weight.name)
        bias = self.added(node.outputs[0], outputs)
        yield from self.row(weight, node, shape, self.uses(node.outputs[0], outputs), bias)

    def _experts(self, node: ir.Node) -> Iterator[Row]:
        """QMoE: stacks of packed rows, scales for each group, zero points packed alike or none."""
        bits, each = int(graphs.attribute(node, "expert_weight_bits", 4)), int(graphs.attribute(node, "k", 1))
        for at, zero_at in ((2, 11), (5, 12)):
            weight = stored(input_at(node, at))
            if weight is None or len(weight.sizes) != 3:
                continue
            copies, outputs, packed = weight.sizes
            inputs = packed * 8 // bits
            shape: Row = {"kind": "experts", "outputs": outputs, "inputs": inputs, "copies": copies}
            beside = stored(input_at(node, at + 1)), stored(input_at(node, zero_at))
            shape |= self.groups(node, copies * outputs, inputs, inputs, weight.name, bits, beside)
            yield from self.row(weight, node, shape, self.fallback * each / copies)

    def _lookup(self, node: ir.Node) -> Iterator[Row]:
        table = stored(node.inputs[0])
        if table is None or graphs.constant(input_at(node, 1)) is not None:
            return
        if len(table.sizes) == 3:  # a stack of experts, of which some are picked
            picked = known_sizes(node.inputs[1])
            uses = float(math.prod(picked)) if picked else self.fallback
            copies, outputs, inputs = table.sizes
            yield from self.row(
                table, node, {"kind": "experts", "outputs": outputs, "inputs": inputs, "copies": copies}, uses / copies
            )
        elif len(table.sizes) == 2 and (table.tensor.dtype.is_floating_point() or table.tensor.size > SMALL):
            grouped = grouped_sizes(node)
            entries, width = grouped or table.sizes
            shape: Row = {"kind": "embedding", "outputs": entries, "inputs": width}
            if grouped:
                shape |= self.groups(node, entries, width, 128, table.name)
            if table.name.removesuffix(".weight").endswith(("_scale", "_zero")):
                return  # of a quantized table: its row claims them
            self.embedded.add(layer_path(table.name))
            yield from self.row(table, node, shape, 0.0)

    def _recurrent(self, node: ir.Node) -> Iterator[Row]:
        """W: [directions, gates·hidden, inputs], R: [directions, gates·hidden, hidden], B: both biases in one row."""
        steps = (known_sizes(node.inputs[0]) or [int(self.fallback)])[0]
        bias = self.bias(input_at(node, 3))
        for at, role in ((1, "input"), (2, "hidden")):
            weight = stored(node.inputs[at])
            if weight is None:
                continue
            copies, rows, width = weight.sizes
            if node.op_type == "DynamicQuantizeLSTM":
                rows, width = width, rows
                weight.scale, weight.zero = input_at(node, 6 + 2 * at), input_at(node, 7 + 2 * at)
            shape = {"kind": "lstm", "role": role, "outputs": rows, "inputs": width, "copies": copies}
            half = {"bias": bias["bias"] // 2, "bias_bits": bias["bias_bits"]} if bias else {}
            yield from self.row(weight, node, shape, float(steps), half)

    def _norm(self, node: ir.Node) -> Iterator[Row]:
        at = 2 if node.op_type.startswith("Skip") else 1
        weight = stored(input_at(node, at))
        if weight is None:
            return
        width = weight.tensor.size
        shape: Row = {"kind": "norm", "outputs": width}
        if node.op_type == "BatchNormalization":
            shape["buffers"] = sum(self.bias(v)["bias"] for v in node.inputs[3:5] if stored(v))
        yield from self.row(weight, node, shape, self.uses(node.outputs[0], width), self.bias(input_at(node, at + 1)))

    def _scaling(self, node: ir.Node) -> Iterator[Row]:
        """A vector that scales features: what is left of a norm that was written out."""
        for value in node.inputs:
            vector = stored(value)
            if vector is None or len(vector.sizes) != 1 or vector.sizes[0] < 2 or vector.name in self.claimed:
                continue
            scale = vector.name.endswith(("_scale", "_smooth")) or "scale" in vector.name.split(".")[-1]
            width = vector.sizes[0]
            wide = all(last_size(v) in (None, width) for v in node.inputs)  # else it widens: no scaling of features
            if vector.tensor.dtype.is_floating_point() and not scale and wide:
                yield from self.row(vector, node, {"kind": "norm", "outputs": width}, self.uses(node.outputs[0], width))
