"""A graph that grows by an operator at a time, for measuring what operators take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from backends.onnx.dense import symmetric
from backends.onnx.graph import MICROSOFT
from backends.onnx.options import CPU, session_options
from backends.onnx.session import Batch

OPSET, IR_VERSION = 20, 10
INPUT_SCALE = np.float32(0.02)

Work = dict[str, float]
Form = Literal["float", "dynamic", "static"]


@dataclass(frozen=True)
class Probe:
    """A chain of operators as a serialized model, its input, and what one call does: units of work by name."""

    group: str
    name: str
    model: bytes = field(repr=False)
    shape: tuple[int, ...]
    work: Work
    weight: float = 1.0  # how much it counts

    def session(self, threads: int) -> ort.InferenceSession:
        return ort.InferenceSession(self.model, session_options(threads), providers=[CPU])

    @property
    def feed(self) -> Batch:
        return {"x": np.random.default_rng(0).standard_normal(self.shape).astype(np.float32)}


class Chain:
    """A graph with one input that grows by an operator at a time."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.end = shape, "x"
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(0)

    def weights(self, *shape: int) -> np.ndarray:
        """Random numbers that keep a long chain's activations near one."""
        fan_in = max(int(np.prod(shape[1:])), 1)
        uniform = self._rng.random(shape, dtype=np.float32) - np.float32(0.5)
        return uniform * np.float32(np.sqrt(12 / fan_in))

    def constant(self, value: np.ndarray | np.generic) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, operator: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> list[str]:
        names = [f"v{len(self._nodes)}_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(operator, inputs, names, domain=domain, **attributes))
        return names

    def then(self, operator: str, *more: str, domain: str = "", **attributes: Any) -> None:
        """Put an operator behind the end."""
        self.end = self.add(operator, self.end, *more, domain=domain, **attributes)[0]

    def rounded(self, value: str, zero: int = 128) -> str:
        """A value through a quantizer with a fixed range."""
        grid = self.constant(INPUT_SCALE), self.constant(np.uint8(zero))
        return self.add("DequantizeLinear", self.add("QuantizeLinear", value, *grid)[0], *grid)[0]

    def stored(self, weight: np.ndarray, axis: int) -> str:
        """A weight as 8-bit integers per index of `axis`, dequantized."""
        codes, scales = symmetric(weight, axis)
        parts = (codes, scales, np.zeros(len(scales), np.int8))
        return self.add("DequantizeLinear", *(self.constant(p) for p in parts), axis=axis)[0]

    def norm(self, width: int) -> None:
        ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
        self.then("LayerNormalization", self.constant(ones), self.constant(zeros))

    def dense(self, inputs: int, outputs: int, form: Form, *, bias: bool = True) -> None:
        """A product with stored weights: in float, or in INT8 with input ranges measured as it runs or fixed."""
        weight = self.weights(inputs, outputs)
        if form == "float":
            self.then("MatMul", self.constant(weight))
        elif form == "static":
            self.end = self.add("MatMul", self.rounded(self.end), self.stored(weight, axis=1))[0]
        else:
            codes, scales = symmetric(weight, axis=1)
            x, x_scale, x_zero = self.add("DynamicQuantizeLinear", self.end, outputs=3)
            summed = self.add("MatMulInteger", x, self.constant(codes), x_zero)[0]
            wide = self.add("Cast", summed, to=TensorProto.FLOAT)[0]
            both = self.add("Mul", x_scale, self.constant(scales))[0]
            self.end = self.add("Mul", wide, both)[0]
        if bias:
            self.then("Add", self.constant(np.zeros(outputs, np.float32)))

    def probe(self, group: str, name: str, work: Work, weight: float = 1.0) -> Probe:
        # free sizes, as an export has them: known ones would let the runtime fuse more
        sizes: list[Any] = ["batch", "time", *self.shape[2:]] if len(self.shape) == 3 else ["batch", *self.shape[1:]]
        graph = helper.make_graph(
            self._nodes,
            "probe",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
            [helper.make_tensor_value_info(self.end, TensorProto.FLOAT, None)],
            self._constants,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        return Probe(group, name, model.SerializeToString(), self.shape, {"request": 1.0, **work}, weight)
