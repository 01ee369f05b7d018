"""Simple facts of a file that explain what it gains and what not."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from backends.onnx import graph as graphs
from backends.onnx.embeddings import embeddings
from backends.onnx.session import open_session

INTEGER = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4)
PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "FusedMatMul", "LSTM", "GRU")
INTEGER_INPUTS = ("QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
SMALLEST_WEIGHT = 256  # numbers; below are biases, scales, axes


@dataclass(frozen=True)
class Facts:
    """One file in numbers."""

    file_bytes: int
    weight_bytes: int
    integer_bytes: int  # weights of 8 bits and fewer
    half_bytes: int
    float_product_bytes: int  # 32-bit weights of matrix products and convolutions
    embedding_bytes: int
    zero_share: float  # of all weights
    nodes: int  # that the runtime runs, after its own fusion
    unfused: int  # products left in float between quantizers, after the runtime's fusion
    integer_products: bool = False  # activations are integers too

    @property
    def quantized(self) -> bool:
        return self.integer_bytes > 0


def file_facts(path: Path, threads: int = 1) -> Facts:
    """Read a file and the graph that the runtime makes of it; raises InputError where it cannot be read."""
    model = graphs.load(path)
    weights = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    large = [t for t in weights if t.size >= SMALLEST_WEIGHT and t.dtype != ir.DataType.INT64]
    zeros = sum(int(t.size - np.count_nonzero(t.numpy())) for t in large)
    tables = {id(e.stored): e.stored for e in embeddings(model.graph)} | _integer_tables(model.graph)
    optimized = _optimized(path, threads)
    return Facts(
        file_bytes=path.stat().st_size,
        weight_bytes=sum(t.nbytes for t in weights),
        integer_bytes=sum(t.nbytes for t in large if t.dtype in INTEGER),
        half_bytes=sum(t.nbytes for t in large if t.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)),
        float_product_bytes=_float_product_bytes(model.graph),
        embedding_bytes=sum(v.const_value.nbytes for v in tables.values() if v.const_value is not None),
        zero_share=zeros / max(sum(t.size for t in large), 1),
        nodes=len(optimized.node),
        unfused=_unfused(optimized),
        integer_products=any(node.op_type in INTEGER_INPUTS for node in model.graph),
    )


def _integer_tables(graph: ir.Graph) -> dict[int, ir.Value]:
    """Tables of 8-bit lookups."""
    found = {}
    for node in graph:
        table = node.inputs[0] if node.op_type in ("Gather", "GatherBlockQuantized") and node.inputs else None
        if table is not None and table.is_initializer() and table.dtype in INTEGER:
            found[id(table)] = table
    return found


def _float_product_bytes(graph: ir.Graph) -> int:
    found = {}
    for node in graph:
        if node.op_type in PRODUCTS:
            for value in node.inputs[1:3]:
                tensor = value.const_value if value is not None and value.is_initializer() else None
                if tensor is not None and tensor.dtype == ir.DataType.FLOAT and tensor.size >= SMALLEST_WEIGHT:
                    found[id(value)] = tensor.nbytes
    return sum(found.values())


def _optimized(path: Path, threads: int) -> onnx.GraphProto:
    """The graph as the runtime runs it."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "optimized.onnx"
        open_session(path, threads, optimized_path=kept)
        return onnx.load(kept, load_external_data=False).graph


def _unfused(graph: onnx.GraphProto) -> int:
    """Products that read dequantized values: the integers became floats again before the arithmetic."""
    floats = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    products = [node for node in graph.node if node.op_type in PRODUCTS]
    return sum(any(name in floats for name in node.input[:2]) for node in products)


def operator_counts(path: Path) -> Counter[str]:
    """Operators of a file as it is stored."""
    return Counter(node.op_type for node in graphs.load(path).graph)
