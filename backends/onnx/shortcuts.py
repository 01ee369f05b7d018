"""torch's ONNX exporter without the work that it does again and again; the files stay the same.

    signatures of operators    parsed from source for each export    ─► once
    promotion of types         every operator run on its symbols     ─► those that get another type
    rewrite rules              each tried at every node              ─► at nodes of its operator

A rule with two outputs lists the whole graph at each node, whatever its operator: what that takes grows with the square
of the model's depth. Sizes that depend on data (`nonzero`) get other names. benchmarks/exporting.py measures the gain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

from torch.fx import Node

from backends.onnx.replaced import replaced

Method = Callable[..., Any]


@contextmanager
def shortcuts() -> Iterator[None]:
    """Exports take less time while open; as long as before where the libraries' versions have other insides."""
    with ExitStack() as stack:
        for owner, name, make in parts():
            stack.enter_context(replaced(owner, name, make))
        yield


def parts() -> Iterator[tuple[type, str, Callable[[Any], Any]]]:
    """What is replaced: a class, its method, and what makes the new one of the old one."""
    promotion = "torch.onnx._internal.fx.passes.type_promotion"
    if found := _class("onnxscript", "TracedOnnxFunction"):
        yield found, "function_ir", _kept
    if found := _class(promotion, "_TypePromotionInterpreter", "_set_current_node", "_maybe_promote_node"):
        yield found, "run_node", _running_what_changes
    if found := _class("onnxscript.rewriter", "RewriteRule"):
        yield found, "try_rewrite", _at_its_operator


def _class(module: str, name: str, *methods: str) -> type | None:
    """A class of a library; None where this version has none, or none with these methods."""
    try:
        found: type = getattr(import_module(module), name)
    except (ImportError, AttributeError):
        return None
    return found if all(hasattr(found, method) for method in methods) else None


def _kept(original: property) -> property:
    """What a function's source says of it is kept beside the function."""

    def get(self: Any) -> Any:
        if "_kept" not in self.__dict__:
            self.__dict__["_kept"] = original.__get__(self)
        return self.__dict__["_kept"]

    return property(get)


def _running_what_changes(original: Method) -> Method:
    """Operators whose inputs keep their types give what the trace has seen them give."""
    from torch.onnx._internal.fx.passes.type_promotion import get_type_promotion_rule

    def run_node(self: Any, node: Node) -> Any:
        if node.op != "call_function" or "val" not in node.meta:
            return original(self, node)
        with self._set_current_node(node):
            if rule := get_type_promotion_rule(node, self.type_promotion_table):
                self._maybe_promote_node(node, rule)  # which runs what it changes
        return node.meta["val"]

    return run_node


def _at_its_operator(original: Method) -> Method:
    """A rule whose pattern ends in an operator is not tried where another one stands."""

    def try_rewrite(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        matcher: Any = getattr(self, "_matcher", None)
        if type(matcher).__name__ == "SimplePatternMatcher":  # which begins at the first of the ends
            operator = matcher.pattern.output_nodes[0].op_identifier()
            if operator is not None and operator[:2] != (node.domain, node.op_type):
                return None
        return original(self, model, graph, node, **options)

    return try_rewrite
