"""Reading, writing and editing ONNX graphs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from knowledge.faults import first_line
from knowledge.files import write_bytes
from knowledge.values import InputError, RunFailed

MICROSOFT = "com.microsoft"
LARGEST_FILE_BYTES = 2**31 - 2**20  # one protobuf message


def load(path: Path) -> ir.Model:
    """Parse an ONNX file, weights in external files included; raises InputError where it is missing or broken."""
    if not Path(path).is_file():
        raise InputError("model", path, "no such file", "give the path of an .onnx file")
    try:
        model = ir.load(path)
    except (DecodeError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            "model", path, f"not a readable ONNX file ({first_line(error)[:120]})", "export it again"
        ) from None
    if not len(model.graph.outputs):
        raise InputError("model", path, "not a readable ONNX file (it has no outputs)", "export it again")
    return model


def save(model: ir.Model, path: Path) -> None:
    """Write a model as one file, replacing `path` in one step; the same model gives the same bytes.

    Raises RunFailed above 2 GB, which one protobuf message cannot hold.
    """
    write_bytes(Path(path), serialized(model, path))


def serialized(model: ir.Model, path: Path) -> bytes:
    """The bytes of a model as the file `path`; raises RunFailed above 2 GB."""
    proto = ir.serde.serialize_model(model)
    del proto.graph.value_info[:]  # shapes of initializers and of values: the runtime infers them
    if proto.ByteSize() > LARGEST_FILE_BYTES:
        raise RunFailed(f"{path}: the model takes {proto.ByteSize() / 1e9:.1f} GB, more than the 2 GB of one ONNX file")
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Silence the named loggers for a while."""
    found = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(found, levels, strict=True):
            logger.setLevel(level)


# -- constants -------------------------------------------------------------------------------------


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array behind an initializer or a Constant node; None for anything computed at run time."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())


def stored(value: ir.Value | None) -> np.ndarray:
    """The array behind a value that is known to be constant; raises ValueError where it is not."""
    found = constant(value)
    if found is None:
        raise ValueError(f"{value} is no constant")
    return found


def name_of(value: ir.Value) -> str:
    """A value's name; raises ValueError where it has none yet."""
    if value.name is None:
        raise ValueError(f"{value} has no name")
    return value.name


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that a node is in; raises ValueError for a loose node or one of a function."""
    if not isinstance(node.graph, ir.Graph):
        raise ValueError(f"{node} is in no graph")
    return node.graph


def add_constant(graph: ir.Graph, name: str, array: np.ndarray | np.generic) -> ir.Value:
    """A new initializer; a taken name gets a number."""
    unique, count = name, 1
    while unique in graph.initializers:
        count += 1
        unique = f"{name}_{count}"
    tensor = ir.tensor(np.asarray(array, order="C"), name=unique)
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=unique, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def drop_unused_constants(graph: ir.Graph) -> None:
    """Remove initializers that no node reads any more."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


# -- nodes -----------------------------------------------------------------------------------------


def add_before(
    anchor: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    *,
    domain: str = "",
    outputs: int = 1,
    like: ir.Value | None = None,
    **attributes: int | float | str | Sequence[int],
) -> list[ir.Value]:
    """Insert a node before `anchor`; its first output takes the shape and type of `like`."""
    graph = graph_of(anchor)
    attrs = ir.convenience.convert_attributes(attributes)
    node = ir.Node(domain, op_type, list(inputs), attrs, num_outputs=outputs)
    anchor.prepend(node)
    if domain and domain not in graph.opset_imports:
        graph.opset_imports[domain] = 1
    if like is not None:
        node.outputs[0].shape, node.outputs[0].type = like.shape, like.type
    return list(node.outputs)


def attribute(node: ir.Node, name: str, default: int | float | str) -> int | float | str:
    """Value of an attribute, or its default where the node does not carry it."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def input_of(node: ir.Node, slot: int) -> ir.Value:
    """An input that the operator requires; raises ValueError where it is left out."""
    value = node.inputs[slot]
    if value is None:
        raise ValueError(f"{node} lacks input {slot}")
    return value


def made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that computes `value`, where it is of this type."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def only_user(value: ir.Value) -> ir.Node | None:
    """The one node that reads `value`; None where there are several, none, or where it leaves the graph."""
    users = {node for node, _ in value.uses()}
    return users.pop() if len(users) == 1 and not value.is_graph_output() else None


def replace(node: ir.Node, values: Sequence[ir.Value]) -> None:
    """Let `values` take the place of a node's outputs and remove the node; graph outputs keep their names."""
    graph = graph_of(node)
    for old, new in zip(node.outputs, values, strict=True):
        new.shape, new.type = new.shape or old.shape, new.type or old.type
        if old.is_graph_output():
            new.name, old.name = old.name, None
            for i, output in enumerate(graph.outputs):
                if output is old:
                    graph.outputs[i] = new
        old.replace_all_uses_with(new)
    graph.remove(node, safe=True)
