"""Exports by shortcuts write the bytes that they write without, whatever the exporter has to do."""

import threading
from contextlib import nullcontext
from dataclasses import replace

import onnx_ir as ir
import pytest
import torch
from onnxscript import rewriter
from onnxscript._internal.converter import Converter
from onnxscript.rewriter import RewriteRule
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

import backends.onnx.export as exporting
from backends.onnx.export import export
from backends.onnx.replaced import replaced
from backends.onnx.shortcuts import parts, shortcuts
from backends.onnx.trace import traced
from knowledge.values import RunFailed, Workload

WORKLOAD = Workload(seq_len=12, threads=1)
PROMOTION = "torch.onnx._internal.fx.passes.type_promotion"


class OfManyTypes(nn.Module):
    """Types are promoted before, in and after operators; rules find steps that cancel out and others that fuse."""

    def forward(self, pixels):
        whole = pixels.mul(3).to(torch.int64)
        shares = whole / 2 + torch.where(pixels > 0, whole, 1.5) + torch.cat([whole[:, :, :4], pixels[:, :, 4:]], 2)
        roots = torch.sqrt(whole.abs()) * (pixels > 0) + whole.sum((2, 3), keepdim=True) + True
        capped = torch.relu(torch.relu(roots).clamp(0, 6)) * 1 + 0
        turned = shares.transpose(2, 3).transpose(2, 3).unsqueeze(0).unsqueeze(0).reshape(-1, 8, 8).reshape(-1, 64)
        return turned.sum(1, keepdim=True) + capped.flatten(1)


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.ZeroPad2d(1), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(), nn.Dropout(), nn.Conv2d(4, 2, 8)
        )

    def forward(self, pixels):
        return self.layers(pixels).flatten(1)


class Branching(nn.Module):
    """A choice of two graphs, each of which promotes types."""

    def forward(self, pixels):
        means = pixels.mean((1, 2, 3))
        return torch.cond(means.sum() > 0, lambda x: x * torch.ones(3, dtype=torch.int64).sum(), lambda x: -x, (means,))


OWN = {"types": OfManyTypes, "padded": Padded, "branches": Branching}


def sample(kind, small):
    if kind in OWN:
        return replace(small.cnn(), module=OWN[kind]().eval())
    return small.transformer(kind, blocks=1 if kind == "mixtral" else 2)


@pytest.mark.parametrize("kind", ["types", "padded", "branches", "llama", "mixtral", "bert"])
def test_the_bytes_are_those_of_the_long_way(kind, small, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, traces = sample(kind, small), []
    monkeypatch.setattr(exporting, "traced", lambda *given: traces.append(given) or traced(*given))
    export(model, tmp_path / "short.onnx", WORKLOAD)
    assert len(traces) == 1  # it was not exported once more without them
    monkeypatch.setattr(exporting, "shortcuts", nullcontext)
    export(model, tmp_path / "long.onnx", WORKLOAD)
    assert (tmp_path / "short.onnx").read_bytes() == (tmp_path / "long.onnx").read_bytes()


def test_the_sample_of_many_types_needs_promotions(small, tmp_path, monkeypatch):
    model = sample("types", small)
    monkeypatch.setattr(f"{PROMOTION}.get_type_promotion_rule", lambda node, table: None)
    with pytest.raises(RunFailed, match="Type"):
        export(model, tmp_path / "unpromoted.onnx", WORKLOAD)


def standing():
    return [owner.__dict__[name] for owner, name, _ in parts()]


def test_all_parts_are_replaced_and_come_back_also_after_an_error_inside_another():
    before = standing()
    assert len(before) == 3
    with shortcuts():
        assert all(now is not then for now, then in zip(standing(), before, strict=True))
        with pytest.raises(ValueError, match="inside"), shortcuts():
            raise ValueError("inside")
        assert all(now is not then for now, then in zip(standing(), before, strict=True))
    assert all(now is then for now, then in zip(standing(), before, strict=True))


def test_threads_leave_the_libraries_as_they_were():
    before, open_, close = standing(), threading.Event(), threading.Event()

    def first():
        with shortcuts():
            open_.set()
            close.wait(60)

    def second():
        with shortcuts():
            pass

    threads = [threading.Thread(target=target) for target in (first, second)]
    threads[0].start()
    assert open_.wait(60)
    threads[1].start()  # waits for the first
    threads[1].join(0.2)
    assert threads[1].is_alive()
    close.set()
    for thread in threads:
        thread.join(60)
    assert all(now is then for now, then in zip(standing(), before, strict=True))


def test_sources_are_parsed_once(monkeypatch):
    parsed = []
    translate = Converter.translate_function_signature
    monkeypatch.setattr(
        Converter, "translate_function_signature", lambda self, tree: parsed.append(tree) or translate(self, tree)
    )
    functions = []
    for _ in range(2):
        parsed.clear()
        with shortcuts():
            functions.append(ONNXRegistry.from_torchlib().functions.keys())
    assert functions[0] == functions[1]
    assert not parsed
    ONNXRegistry.from_torchlib()
    assert len(parsed) > 100


STEPS = """<ir_version: 8, opset_import: ["": 18]> steps (float[N, 4] x) => (float[N, 4] y) {
    one = Constant<value = float {1.0}>()
    a = Relu(x)
    b = Relu(a)
    c = Transpose<perm = [1, 0]>(b)
    d = Transpose<perm = [1, 0]>(c)
    e = Mul(d, one)
    f = Exp(e)
    y = Cast<to = 1>(f)
}"""


def rewritten(way):
    """(rules applied, operators at which one was tried, operators that are left)"""
    tried = []

    def telling(original):
        def try_rewrite(self, model, graph, node, **options):
            tried.append(node.op_type)
            return original(self, model, graph, node, **options)

        return try_rewrite

    model = ir.from_onnx_text(STEPS)
    with replaced(RewriteRule, "try_rewrite", telling), way():
        applied = rewriter.RewriteRuleSet(rewriter._DEFAULT_REWRITE_RULES).apply_to_model(model)
    return applied, tried, [node.op_type for node in model.graph]


def test_rules_are_tried_at_their_operators_only_and_all_that_fit_are_applied():
    (count, tried, left), (same_count, fewer, same_left) = rewritten(nullcontext), rewritten(shortcuts)
    assert count == same_count >= 3
    assert left == same_left
    assert "Exp" in tried
    assert len(fewer) < len(tried) / 4


def test_what_a_library_does_not_have_is_not_replaced():
    with replaced(ONNXRegistry, "no_such_method", lambda original: None):
        assert not hasattr(ONNXRegistry, "no_such_method")
