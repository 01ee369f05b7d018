"""A traced program in operators that change none of their inputs, without tracing it a second time.

    in place          x.div_(y), where nothing else sees x       ─► a new value
    another's value   detach_, casts to the same type            ─► the input itself
    other names       &, contiguous, batch norms, …              ─► operators that ONNX has
    checks            of sizes and types                         ─► nothing, and what they alone computed

torch.onnx.export decomposes a program by running the whole model again on symbolic shapes, about 40 % of an export of a
language model, mostly to find nothing else than these.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from backends.onnx.replaced import replaced

aten = torch.ops.aten
CHECKS = {
    aten._assert_async.default,
    aten._assert_async.msg,
    aten._assert_scalar.default,
    aten._assert_tensor_metadata.default,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
}
INPUT_ITSELF = {aten.alias.default, aten.detach.default, aten.detach_.default}
CASTS = {aten.to, aten.type_as}
NAMES = {
    aten.__and__.Tensor: aten.bitwise_and.Tensor,
    aten.__or__.Tensor: aten.bitwise_or.Tensor,
    aten.max.other: aten.maximum.default,
    aten.min.other: aten.minimum.default,
    aten.numpy_T.default: aten.t.default,
}
# composed of others in torch, which never leaves them whole; ONNX has them in the same meaning
COMPOSED = {aten.expand_as.default, aten.flatten.using_ints, aten.reshape.default, aten.unflatten.int}
VIEWS_UNSAID = {aten.dropout.default, aten.einsum.default, aten._unsafe_view.default}  # in their schemas

Decompositions = Collection[Any]  # the operators that ONNX lacks
Change = Callable[[Graph, Node], None]


@contextmanager
def traced_once() -> Iterator[list[ExportedProgram]]:
    """Exports need no second trace where `make_functional` suffices; yields the programs for which it was to."""
    spared: list[ExportedProgram] = []

    def sparing(again: Callable[..., ExportedProgram]) -> Callable[..., ExportedProgram]:
        def run_decompositions(
            self: ExportedProgram, decomp_table: dict[Any, Any] | None = None, **more: Any
        ) -> ExportedProgram:
            if decomp_table is not None and not more:
                spared.append(self)
                if make_functional(self, decomp_table):
                    return self
                spared.pop()
            return again(self, decomp_table, **more)

        return run_decompositions

    with replaced(ExportedProgram, "run_decompositions", sparing):
        yield spared


def make_functional(program: ExportedProgram, table: Decompositions) -> bool:
    """Change the program in place as above; False, and nothing is changed, where that takes more.

    `table` has the operators that must go. Others stay: whether ONNX has them, the exporter will tell.
    """
    graph = program.graph_module.graph
    changes = []
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.target, OpOverload):
            change = _change(node, table)
            if change is None:
                return False
            changes.append((node, change))
        elif node.op not in ("placeholder", "output") and not _is_scalar(node):
            return False
    for node, change in changes:
        change(graph, node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return True


def _is_scalar(node: Node) -> bool:
    """Arithmetic of sizes, or a choice among several outputs; no operator with graphs of its own."""
    return node.op == "call_function" and not isinstance(node.target, torch._ops.OperatorBase)


# -- what to do with an operator -------------------------------------------------------------------


def _change(node: Node, table: Decompositions) -> Change | None:
    op, args = node.target, cast(Any, node.args)
    assert isinstance(op, OpOverload)
    if op in CHECKS:
        return _erase
    if _gives_its_input(node):
        is_output = any(user.op == "output" for user in node.users)  # the program knows its outputs by their nodes
        return _alias if is_output else _pass_on
    if op.overloadpacket in CASTS:
        return _cast
    if op._schema.is_mutable:
        return _without_effect(node, table)
    if op in NAMES:
        return _rename if op is not aten.numpy_T.default or node.meta["val"].dim() <= 2 else None
    if op is aten.contiguous.default:
        return _copy
    if op is aten.batch_norm.default and not args[5]:  # not in training
        return _from_statistics
    if op is aten.adaptive_avg_pool2d.default and all(size == 1 for size in args[1]):
        return _mean
    whole = op in COMPOSED or (op is aten.chunk.default and len(node.meta["val"]) == args[1])
    return _keep if op not in table and (whole or not _is_composed(op)) else None


@cache
def _is_composed(op: OpOverload) -> bool:
    """Whether a second trace would take the operator apart, whatever the table says."""
    composite = op.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    return bool(composite) and op not in _taken_apart()


@cache
def _taken_apart() -> Decompositions:
    """torch gathers this table from every operator there is."""
    return torch.export.default_decompositions()


def _gives_its_input(node: Node) -> bool:
    op = node.target
    if op is aten.dropout.default:
        return not node.args[2]  # not in training
    same = isinstance(op, OpOverload) and op.overloadpacket in CASTS and _dtype(node) == _dtype(node.args[0])
    return same or op in INPUT_ITSELF


def _dtype(node: Any) -> torch.dtype:
    found: torch.dtype = node.meta["val"].dtype
    return found


def _without_effect(node: Node, table: Decompositions) -> Change | None:
    """aten.div_.Tensor -> aten.div.Tensor, where the new value has the type of the old one, which nothing else sees."""
    op = node.target
    assert isinstance(op, OpOverload)
    name = op._schema.name.removeprefix("aten::")
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    new = getattr(packet, op._overloadname, None)
    if not isinstance(new, OpOverload) or new._schema.is_mutable or new in table or not _is_alone(node.args[0], node):
        return None
    args, kwargs = map_arg((node.args, node.kwargs), lambda one: one.meta["val"])
    return _in_place(new) if new(*args, **kwargs).dtype == _dtype(node) else None


def _is_alone(value: Any, changing: Node) -> bool:
    """Whether the memory of a value is seen through no other: it was computed, and nobody else gives it on."""
    if not isinstance(value, Node) or value.op != "call_function":
        return False
    source = value if isinstance(value.target, OpOverload) else value.args[0]  # of several outputs
    if not isinstance(source, Node) or not isinstance(source.target, OpOverload) or _shares_memory(source):
        return False
    return not any(user.op == "output" or _shares_memory(user) for user in value.users if user is not changing)


def _shares_memory(node: Node) -> bool:
    op = node.target
    if not isinstance(op, OpOverload):
        return False
    said = any(value.alias_info is not None for value in op._schema.returns)
    return said or op in VIEWS_UNSAID or op.overloadpacket in CASTS


# -- doing it --------------------------------------------------------------------------------------


def _keep(graph: Graph, node: Node) -> None:
    """ONNX has it."""


def _erase(graph: Graph, node: Node) -> None:
    graph.erase_node(node)


def _pass_on(graph: Graph, node: Node) -> None:
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
    graph.erase_node(node)


def _alias(graph: Graph, node: Node) -> None:
    node.target, node.args, node.kwargs = aten.alias.default, node.args[:1], {}


def _copy(graph: Graph, node: Node) -> None:
    """Views that follow rely on its order in memory."""
    node.target, node.args, node.kwargs = aten.clone.default, node.args[:1], {"memory_format": torch.contiguous_format}


def _from_statistics(graph: Graph, node: Node) -> None:
    given, scale, shift, mean, variance, _, momentum, epsilon, _ = cast(Any, node.args)
    args, op = (given, scale, shift, mean, variance, momentum, epsilon), aten._native_batch_norm_legit_no_training
    with graph.inserting_before(node):
        three = graph.call_function(op.default, args)
    three.meta = {**node.meta, "val": op.default(*map_arg(args, lambda one: one.meta["val"]))}
    node.target, node.args, node.kwargs = operator.getitem, (three, 0), {}


def _mean(graph: Graph, node: Node) -> None:
    node.target, node.args, node.kwargs = aten.mean.dim, (node.args[0], [-1, -2], True), {}


def _cast(graph: Graph, node: Node) -> None:
    node.target, node.args, node.kwargs = aten._to_copy.default, node.args[:1], {"dtype": _dtype(node)}


def _rename(graph: Graph, node: Node) -> None:
    node.target = NAMES[node.target]  # type: ignore[index]


def _in_place(new: OpOverload) -> Change:
    """Later readers of the value read the new one."""

    def change(graph: Graph, node: Node) -> None:
        before = set(_until(graph, node))
        value = node.args[0]
        assert isinstance(value, Node)
        value.replace_all_uses_with(node, delete_user_cb=lambda user: user not in before)
        node.target = new

    return change


def _until(graph: Graph, last: Node) -> Iterator[Node]:
    """The nodes up to this one."""
    for node in graph.nodes:
        yield node
        if node is last:
            return
