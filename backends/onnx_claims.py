"""Which row of an ONNX graph stores a tensor: the layer that reads it claims it; what nobody claims is left over."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from backends.onnx import graph as graphs
from backends.onnx.weights import tensors
from backends.onnx_shapes import known_sizes
from backends.onnx_stored import FOLLOWED, Stored, layer_path, stored

Row = dict[str, Any]
SMALL = 64  # numbers: smaller leftovers share a row


class Claims:
    """The rows' parts, and who has claimed what."""

    def __init__(self, model: ir.Model, sample: dict[str, Any]) -> None:
        self.model, self.graph = model, model.graph
        self.fallback = float(sample.get("seq_len", 1))
        self.claimed: dict[str, str] = {}  # tensor -> path of the row that stores it
        self.embedded: set[str] = set()  # paths of embeddings

    def row(
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

    def groups(
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
        scale, zero = beside or (stored(input_at(node, 2)), stored(input_at(node, 3)))
        if scale is None or scale.tensor.size != outputs * groups:
            return found
        self.claimed[scale.name] = owner
        found["scale_bits"] = scale.tensor.dtype.bitwidth
        if zero is not None:
            self.claimed[zero.name] = owner
            packed = zero.tensor.nbytes == outputs * -(-groups * bits // 8)  # each row's in whole bytes
            found["zero_bits"] = bits if packed else round(8 * zero.tensor.nbytes / (outputs * groups))
        return found

    def bias(self, value: ir.Value | None) -> Row:
        """Bias columns of a stored vector, claimed; empty where there is none or it has a row already."""
        vector = stored(value)
        if vector is None or vector.name in self.claimed:
            return {}
        self.claimed[vector.name] = vector.name
        return {"bias": vector.tensor.size, "bias_bits": vector.tensor.dtype.bitwidth}

    def added(self, value: ir.Value, width: int) -> Row:
        """The bias that is added to a product, directly or after its scales."""
        for _ in range(4):
            node = graphs.only_user(value)
            if node is None:
                return {}
            if node.op_type == "Add":
                vectors = [v for v in map(stored, node.inputs) if v is not None and v.sizes == (width,)]
                return self.bias(vectors[0].value) if vectors else {}
            if node.op_type not in FOLLOWED:
                return {}
            value = node.outputs[0]
        return {}

    def uses(self, output: ir.Value, width: int) -> float:
        sizes = known_sizes(output)
        return math.prod(sizes) / width if sizes else self.fallback

    def left_over(self) -> Iterator[Row]:
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


def input_at(node: ir.Node, at: int | None) -> ir.Value | None:
    """An operator's input, None where it has none there."""
    return node.inputs[at] if at is not None and at < len(node.inputs) else None
