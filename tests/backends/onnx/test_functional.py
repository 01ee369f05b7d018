"""Programs without a second trace: the same numbers as with it, and left alone where that cannot be."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from backends.onnx import functional, trace
from backends.onnx.export import export
from backends.onnx.functional import aten, make_functional
from backends.onnx.weights import weight_bytes
from knowledge.values import Workload

GONE = {aten.__and__.Tensor, aten.contiguous.default, aten.numpy_T.default, aten.to.dtype, aten.detach.default}
WORKLOAD = Workload(seq_len=12, threads=1)


def traced(forward, *example):
    module = nn.Module()
    module.forward = forward
    return torch.export.export(module.eval(), example, strict=False)


def operators(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def normalized(x):
    weights = x.topk(2, dim=-1).values
    weights /= weights.sum(-1, keepdim=True)
    return weights * 2


def masked(x):
    allowed = (x > 0) & (x < 1)
    return x.contiguous().to(torch.float32) * allowed.to(x.device, torch.float32)


def relu_in_place(x):
    y = x * 2
    before = y + 1
    y.relu_()
    return y + before


def given_on(x):
    y = x * 2
    return y.to(torch.float32), y.transpose(0, 1).contiguous().view(-1).detach().T


@pytest.mark.parametrize("forward", [normalized, masked, relu_in_place, given_on])
def test_the_program_computes_the_same_without_side_effects(forward):
    x = torch.linspace(-2, 2, 40).reshape(4, 10)
    program = traced(forward, x)
    assert make_functional(program, GONE)
    assert not any(node.target._schema.is_mutable for node in program.graph.nodes if hasattr(node.target, "_schema"))
    assert not operators(program) & {str(op) for op in GONE}
    torch.testing.assert_close(program.module()(x), forward(x), rtol=0, atol=0)


def given(x):
    x.mul_(2)
    return x + 1


def seen_through_a_view(x):
    y = x * 2
    part = y[:, :2]
    y.add_(1)
    return part * 1


def branching(x):
    return torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y - 1, (x,))


@pytest.mark.parametrize("forward", [given, seen_through_a_view, branching])
def test_what_takes_more_is_left_as_it_was(forward):
    program = traced(forward, torch.ones(3, 4))
    before = str(program.graph)
    assert not make_functional(program, ())
    assert str(program.graph) == before


def test_an_operator_that_onnx_lacks_is_decomposed():
    program = traced(lambda x: nn.functional.adaptive_avg_pool2d(x, 1), torch.ones(1, 2, 4, 4))
    assert not make_functional(program, {aten.adaptive_avg_pool2d.default})
    assert make_functional(program, ())


@pytest.mark.parametrize("kind", ["mixtral", "bert"])
def test_the_file_is_that_of_two_traces(small, outputs, tmp_path, kind, monkeypatch):
    model, answers = small.transformer(kind, blocks=1), []
    monkeypatch.setattr(functional, "make_functional", lambda *given: answers.append(make_functional(*given)) or True)
    export(model, tmp_path / "once.onnx", WORKLOAD)
    assert answers == [True]
    monkeypatch.setattr(trace, "traced_once", lambda: nullcontext([]))
    export(model, tmp_path / "twice.onnx", WORKLOAD)
    split = small.split(model, count=3, seed=3, time=7)
    once, twice = (outputs(tmp_path / name, split) for name in ("once.onnx", "twice.onnx"))
    np.testing.assert_allclose(once, twice, atol=1e-6)
    sizes = [weight_bytes(tmp_path / name) for name in ("once.onnx", "twice.onnx")]
    assert sizes[0] == pytest.approx(sizes[1], abs=64)  # constants of shapes


class Pooled(nn.Module):
    def forward(self, pixels):
        return nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(1)


def test_where_the_exporter_does_not_know_an_operator_it_gets_two_traces(tmp_path, monkeypatch, small, outputs):
    model = replace(small.cnn(), module=Pooled().eval())
    seen = []

    def trusting(program, table):
        seen.append(make_functional(program, ()))
        return seen[-1]

    monkeypatch.setattr(functional, "make_functional", trusting)
    export(model, tmp_path / "model.onnx", WORKLOAD)
    assert seen == [True]
    split = small.split(model, count=3)
    np.testing.assert_allclose(outputs(tmp_path / "model.onnx", split), small.outputs(model, split), atol=1e-6)
