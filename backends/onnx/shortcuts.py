"""torch's ONNX exporter without the work that it does again and again; what it writes stays the same.

    registry of operators    parsed from source for each export    ─► once
    promotion of types       every operator run on its symbols     ─► those that get another type
    rewrite rules            each tried at every node              ─► at nodes of its operator

Together about a third of an export. A rule with two outputs takes the whole graph in hand at each node, whatever its
operator: what that took grew with the square of the model's depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any

from onnxscript.rewriter import RewriteRule
from torch.fx import Interpreter, Node
from torch.onnx._internal.exporter._registration import ONNXRegistry
from torch.onnx._internal.fx.passes import type_promotion

from backends.onnx.replaced import replaced


@contextmanager
def shortcuts() -> Iterator[None]:
    """Exports take less time while open."""
    with ExitStack() as stack:
        stack.enter_context(replaced(ONNXRegistry, "from_torchlib", _parsed_once))
        stack.enter_context(replaced(type_promotion._TypePromotionInterpreter, "run_node", _running_what_changes))
        stack.enter_context(replaced(RewriteRule, "try_rewrite", _at_its_operator))
        yield


def _parsed_once(original: Any) -> Any:
    """The registry for an opset is kept; exports only read it."""
    return staticmethod(partial(_registry, original.__func__))


@cache
def _registry(parse: Callable[..., ONNXRegistry], *opset: int, **named: int) -> ONNXRegistry:
    return parse(ONNXRegistry, *opset, **named)


def _running_what_changes(original: Callable[..., Any]) -> Callable[..., Any]:
    """Operators whose inputs keep their types give what the trace has seen them give."""

    def run_node(self: Any, node: Node) -> Any:
        if node.op != "call_function" or "val" not in node.meta:
            return original(self, node)
        before = node.target, node.args, node.kwargs
        with self._set_current_node(node):
            if rule := type_promotion.get_type_promotion_rule(node, self.type_promotion_table):
                self._maybe_promote_node(node, rule)
        if (node.target, node.args, node.kwargs) == before:
            return node.meta["val"]
        return Interpreter.run_node(self, node)

    return run_node


def _at_its_operator(original: Callable[..., Any]) -> Callable[..., Any]:
    """A rule whose pattern ends in an operator is not tried where another one stands."""

    def try_rewrite(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        last = self._target_pattern.output_nodes[0].op_identifier()
        if last is not None and last[:2] != (node.domain, node.op_type):
            return None
        return original(self, model, graph, node, **options)

    return try_rewrite
