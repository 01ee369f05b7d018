"""Rows of an ONNX graph: each stored tensor is claimed by the layer that reads it, what nobody claims is left over."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from backends.onnx import graph as graphs
from backends.onnx.weights import tensors
from backends.onnx_shapes import known_sizes, last_size
from backends.onnx_stored import (
    CONVS,
    DENSE,
    FOLLOWED,
    GROUPED,
    NORMS,
    RECURRENT,
    Stored,
    grouped_sizes,
    layer_path,
    stored,
)

Row = dict[str, Any]
SMALL = 64  # numbers: smaller leftovers share a row


class Reader:
    """Walks a graph once and collects its rows."""

    def __init__(self, model: ir.Model, sample: dict[str, Any]) -> None:
        self.model, self.graph = model, model.graph
        self.fallback = float(sample.get("seq_len", 1))
        self.claimed: dict[str, str] = {}  # tensor -> path of the row that stores it
        self.embedded: set[str] = set()  # paths of embeddings

    def rows(self) -> list[Row]:
        """All rows, in graph order; leftovers last."""
        found = [row for node in self.graph for row in self._of(node)]
        return found + list(self._left_over())

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

    # -- one operator each -------------------------------------------------------------------------

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
        yield from self._row(weight, node, shape, positions, self._bias(_input(node, bias_at)))

    def _dense(self, node: ir.Node, weight_at: int, bias_at: int | None) -> Iterator[Row]:
        weight = stored(_input(node, weight_at))
        if weight is None or len(weight.sizes) not in (2, 3):
            return
        transposed = node.op_type == "Gemm" and bool(graphs.attribute(node, "transB", 0))
        *copies, inputs, outputs = weight.sizes
        if transposed:
            inputs, outputs = outputs, inputs
        if node.op_type in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul"):
            at = 3 if node.op_type == "MatMulIntegerToFloat" else 2
            weight.scale, weight.zero = _input(node, at), _input(node, at + (2 if at == 3 else 1))
        positions = self._uses(node.outputs[0], outputs)
        shape: Row = {"kind": "linear", "outputs": outputs, "inputs": inputs}
        if copies:
            shape |= {"kind": "experts", "copies": copies[0]}
            positions /= copies[0]
        bias = self._bias(_input(node, bias_at)) or self._added(node.outputs[0], outputs)
        yield from self._row(weight, node, shape, positions, bias)

    def _blocks(self, node: ir.Node) -> Iterator[Row]:
        """MatMulNBits and MatMulBnb4: packed weights, a scale for each group, zero points packed alike or none."""
        weight, sizes = stored(node.inputs[1]), grouped_sizes(node)
        if weight is None or sizes is None:
            return
        outputs, inputs = sizes
        shape: Row = {"kind": "linear", "outputs": outputs, "inputs": inputs}
        shape |= self._groups(node, outputs, inputs, 32, weight.name)
        bias = self._added(node.outputs[0], outputs)
        yield from self._row(weight, node, shape, self._uses(node.outputs[0], outputs), bias)

    def _experts(self, node: ir.Node) -> Iterator[Row]:
        """QMoE: stacks of packed rows, scales for each group, zero points packed alike or none."""
        bits, each = int(graphs.attribute(node, "expert_weight_bits", 4)), int(graphs.attribute(node, "k", 1))
        for at, zero_at in ((2, 11), (5, 12)):
            weight = stored(_input(node, at))
            if weight is None or len(weight.sizes) != 3:
                continue
            copies, outputs, packed = weight.sizes
            inputs = packed * 8 // bits
            shape: Row = {"kind": "experts", "outputs": outputs, "inputs": inputs, "copies": copies}
            beside = stored(_input(node, at + 1)), stored(_input(node, zero_at))
            shape |= self._groups(node, copies * outputs, inputs, inputs, weight.name, bits, beside)
            yield from self._row(weight, node, shape, self.fallback * each / copies)

    def _lookup(self, node: ir.Node) -> Iterator[Row]:
        table = stored(node.inputs[0])
        if table is None or graphs.constant(_input(node, 1)) is not None:
            return
        if len(table.sizes) == 3:  # a stack of experts, of which some are picked
            picked = known_sizes(node.inputs[1])
            uses = float(math.prod(picked)) if picked else self.fallback
            copies, outputs, inputs = table.sizes
            yield from self._row(
                table, node, {"kind": "experts", "outputs": outputs, "inputs": inputs, "copies": copies}, uses / copies
            )
        elif len(table.sizes) == 2 and (table.tensor.dtype.is_floating_point() or table.tensor.size > SMALL):
            grouped = grouped_sizes(node)
            entries, width = grouped or table.sizes
            shape: Row = {"kind": "embedding", "outputs": entries, "inputs": width}
            if grouped:
                shape |= self._groups(node, entries, width, 128, table.name)
            if table.name.removesuffix(".weight").endswith(("_scale", "_zero")):
                return  # of a quantized table: its row claims them
            self.embedded.add(layer_path(table.name))
            yield from self._row(table, node, shape, 0.0)

    def _recurrent(self, node: ir.Node) -> Iterator[Row]:
        """W: [directions, gates·hidden, inputs], R: [directions, gates·hidden, hidden], B: both biases in one row."""
        steps = (known_sizes(node.inputs[0]) or [int(self.fallback)])[0]
        bias = self._bias(_input(node, 3))
        for at, role in ((1, "input"), (2, "hidden")):
            weight = stored(node.inputs[at])
            if weight is None:
                continue
            copies, rows, width = weight.sizes
            if node.op_type == "DynamicQuantizeLSTM":
                rows, width = width, rows
                weight.scale, weight.zero = _input(node, 6 + 2 * at), _input(node, 7 + 2 * at)
            shape = {"kind": "lstm", "role": role, "outputs": rows, "inputs": width, "copies": copies}
            half = {"bias": bias["bias"] // 2, "bias_bits": bias["bias_bits"]} if bias else {}
            yield from self._row(weight, node, shape, float(steps), half)

    def _norm(self, node: ir.Node) -> Iterator[Row]:
        at = 2 if node.op_type.startswith("Skip") else 1
        weight = stored(_input(node, at))
        if weight is None:
            return
        width = weight.tensor.size
        shape: Row = {"kind": "norm", "outputs": width}
        if node.op_type == "BatchNormalization":
            shape["buffers"] = sum(self._bias(v)["bias"] for v in node.inputs[3:5] if stored(v))
        yield from self._row(weight, node, shape, self._uses(node.outputs[0], width), self._bias(_input(node, at + 1)))

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
                yield from self._row(
                    vector, node, {"kind": "norm", "outputs": width}, self._uses(node.outputs[0], width)
                )

    # -- parts of rows -----------------------------------------------------------------------------

    def _row(
        self, weight: Stored, node: ir.Node, shape: Row, positions: float, bias: Row | None = None
    ) -> Iterator[Row]:
        """One row, its weight and scales claimed; tied where the tensor has a row already."""
        path = layer_path(weight.name)
        row: Row = {"path": path, "positions": positions, "bits": weight.tensor.dtype.bitwidth, **shape, **(bias or {})}
        if owner := self.claimed.get(weight.name):
            if row["kind"] in ("norm", "other", "embedding", "conv"):  # the same constant, read again
                if bias:
                    yield {"path": f"{path}.{node.name or node.outputs[0].name}", "kind": "other", "outputs": 0, **bias}
                return
            head = self.embedded & {owner}  # the head of a language model reads the token embedding again
            row |= {"tied_to": owner, "path": f"{path}@{node.outputs[0].name}"} | ({"role": "head"} if head else {})
        else:
            self.claimed[weight.name] = path
            if "scale_bits" not in row:
                row |= self._scales(weight, row)
        if (
            "." not in path and node.name and "/" in node.name
        ):  # exporters that lose the weight's name keep the module's
            row["hint"] = ".".join(part for part in node.name.split("/")[1:-1])
        yield row

    def _scales(self, weight: Stored, row: Row) -> Row:
        """Format of the scales beside a weight, found through the operator or by name, where the columns can say it."""
        base = weight.name.removesuffix("_quantized")
        scale = weight.scale or self.graph.initializers.get(f"{base}_scale")
        zero = weight.zero or next(
            (v for s in ("_zero_point", "_zero") if (v := self.graph.initializers.get(base + s))), None
        )
        if scale is None or scale.const_value is None or weight.tensor.dtype == ir.DataType.FLOAT:
            return {}
        count, copies = scale.const_value.size, row.get("copies", 1)
        if count == copies * row["outputs"]:
            group = 0
        elif count == copies:
            group = -1
        else:
            return {}
        self.claimed[scale.name or ""] = weight.name
        found = {"group_size": group, "scale_bits": scale.const_value.dtype.bitwidth}
        if zero is not None and zero.const_value is not None and zero.const_value.size == count:
            self.claimed[zero.name or ""] = weight.name
            found["zero_bits"] = zero.const_value.dtype.bitwidth
        return found

    def _groups(
        self,
        node: ir.Node,
        outputs: int,
        inputs: int,
        usual_size: int,
        owner: str,
        bits: int = 0,
        beside: tuple[Stored | None, Stored | None] | None = None,
    ) -> Row:
        """Format of a matrix in groups, its scales and zero points (by default the third and fourth input) claimed."""
        bits = bits or int(graphs.attribute(node, "bits", 4))
        size = int(graphs.attribute(node, "block_size", usual_size))
        groups = -(-inputs // size)
        found: Row = {"bits": bits, "group_size": size, "scale_bits": 0}
        scale, zero = beside or (stored(_input(node, 2)), stored(_input(node, 3)))
        if scale is None or scale.tensor.size != outputs * groups:
            return found
        self.claimed[scale.name] = owner
        found["scale_bits"] = scale.tensor.dtype.bitwidth
        if zero is not None:
            self.claimed[zero.name] = owner
            packed = zero.tensor.nbytes == outputs * -(-groups * bits // 8)  # each row's in whole bytes
            found["zero_bits"] = bits if packed else round(8 * zero.tensor.nbytes / (outputs * groups))
        return found

    def _bias(self, value: ir.Value | None) -> Row:
        """Bias columns of a stored vector, claimed; empty where there is none or it has a row already."""
        vector = stored(value)
        if vector is None or vector.name in self.claimed:
            return {}
        self.claimed[vector.name] = vector.name
        return {"bias": vector.tensor.size, "bias_bits": vector.tensor.dtype.bitwidth}

    def _added(self, value: ir.Value, width: int) -> Row:
        """The bias that is added to a product, directly or after its scales."""
        for _ in range(4):
            node = graphs.only_user(value)
            if node is None:
                return {}
            if node.op_type == "Add":
                vectors = [v for v in map(stored, node.inputs) if v is not None and v.sizes == (width,)]
                return self._bias(vectors[0].value) if vectors else {}
            if node.op_type not in FOLLOWED:
                return {}
            value = node.outputs[0]
        return {}

    def _uses(self, output: ir.Value, width: int) -> float:
        sizes = known_sizes(output)
        return math.prod(sizes) / width if sizes else self.fallback

    def _left_over(self) -> Iterator[Row]:
        """Rows for every stored tensor that no layer claimed, the small ones together by width."""
        small: dict[int, int] = {}
        for tensor in tensors(self.model):
            if tensor.name in self.claimed and tensor.name in self.graph.initializers:
                continue
            bits = tensor.dtype.bitwidth
            if tensor.size > SMALL and tensor.name:
                entries = tensor.shape.numpy()[0] if len(tensor.shape) == 2 else int(tensor.size)
                shape = {"outputs": entries, "inputs": int(tensor.size) // max(entries, 1)}
                yield {"path": layer_path(tensor.name), "kind": "other", "bits": bits, **shape}
            else:
                small[bits] = small.get(bits, 0) + int(tensor.size)
        for bits, count in sorted(small.items()):
            yield {
                "path": f"constants.int{bits}" if bits != 32 else "constants",
                "kind": "other",
                "outputs": count,
                "bits": bits,
            }


def _input(node: ir.Node, at: int | None) -> ir.Value | None:
    return node.inputs[at] if at is not None and at < len(node.inputs) else None
