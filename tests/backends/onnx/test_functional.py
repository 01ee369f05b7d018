"""Programs without a second trace: the same numbers as with it, and left alone where that cannot be."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import backends.onnx.export as exporting
from backends.onnx import functional
from backends.onnx.export import export
from backends.onnx.functional import aten, make_functional
from backends.onnx.weights import weight_bytes
from knowledge.values import Workload

GONE = {
    aten.__and__.Tensor, aten.adaptive_avg_pool2d.default, aten.batch_norm.default, aten.contiguous.default,
    aten.detach.default, aten.numpy_T.default, aten.to.dtype,
}  # fmt: skip
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


def convolutional(x):
    norm = nn.functional.batch_norm(x.reshape(2, 2, 10), torch.tensor([1.0, 2]), torch.tensor([3.0, 4]))
    return nn.functional.adaptive_avg_pool2d(norm[:, None], 1)


def given_on(x):
    y = x * 2
    return y.to(torch.float32), y.transpose(0, 1).contiguous().view(-1).detach().T


@pytest.mark.parametrize("forward", [normalized, masked, relu_in_place, convolutional, given_on])
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


@pytest.mark.parametrize(
    ("forward", "shape"),
    [
        (lambda x: nn.functional.adaptive_avg_pool2d(x, 2), (1, 2, 4, 4)),  # the table has it
        (lambda x: nn.functional.dropout2d(x, 0.5, training=False), (1, 2, 4, 4)),  # torch takes it apart
        (lambda x: torch.cat(x.chunk(4, -1)[:3]), (2, 9)),  # three pieces
        (lambda x: x.T * 2, (2, 3, 4)),
        (lambda x: (x * 2).logical_not_() + 1, (3, 4)),  # of another type than its input
        (lambda x: torch.atleast_2d(x.sum(1)).add_(1), (3, 4)),  # a view that is not said to be one
    ],
)
def test_what_a_second_trace_would_take_apart_gets_one(forward, shape):
    program = traced(forward, torch.ones(shape))
    assert not make_functional(program, {aten.adaptive_avg_pool2d.default})


@pytest.fixture
def traces(monkeypatch):
    """Whether each trace ended well."""
    found = []

    def counted(form, example):
        found.append(False)
        graph = traced_form(form, example)
        found[-1] = True
        return graph

    traced_form = exporting.traced
    monkeypatch.setattr(exporting, "traced", counted)
    return found


@pytest.mark.parametrize("kind", ["mixtral", "bert"])
def test_the_file_is_that_of_two_traces(small, outputs, tmp_path, kind, monkeypatch, traces):
    model, answers = small.transformer(kind, blocks=1), []
    monkeypatch.setattr(functional, "make_functional", lambda *given: answers.append(make_functional(*given)) or True)
    export(model, tmp_path / "once.onnx", WORKLOAD)
    assert answers == [True]
    assert traces == [True]
    monkeypatch.setattr(exporting, "traced_once", lambda: nullcontext([]))
    export(model, tmp_path / "twice.onnx", WORKLOAD)
    split = small.split(model, count=3, seed=3, time=7)
    once, twice = (outputs(tmp_path / name, split) for name in ("once.onnx", "twice.onnx"))
    np.testing.assert_allclose(once, twice, atol=1e-6)
    sizes = [weight_bytes(tmp_path / name) for name in ("once.onnx", "twice.onnx")]
    assert sizes[0] == pytest.approx(sizes[1], abs=64)  # constants of shapes


class Pooled(nn.Module):
    """No module in it that a difference could be blamed on."""

    def __init__(self, known):
        super().__init__()
        self.known = known

    def forward(self, pixels):
        pool = nn.functional
        return (pool.avg_pool2d(pixels, 4) if self.known else pool.adaptive_avg_pool2d(pixels, 2)).flatten(1)


def wrongly(program):
    """Twice the sum."""
    for node in program.graph.nodes:
        if node.op == "output":
            with program.graph.inserting_before(node):
                doubled = program.graph.call_function(aten.mul.Tensor, (node.args[0][0], 2))
            doubled.meta = dict(node.args[0][0].meta)
            node.args = ((doubled,),)
            program._graph_signature.output_specs[0].arg.name = doubled.name


@pytest.mark.parametrize("fault", ["an operator that the exporter does not know", "other numbers", "an exception"])
def test_what_comes_to_nothing_is_traced_again(tmp_path, monkeypatch, small, outputs, traces, fault):
    model = replace(small.cnn(), module=Pooled(known=fault == "other numbers").eval())

    def faulty(program, table):
        assert fault != "an exception"
        if fault == "other numbers":
            wrongly(program)
        return True

    monkeypatch.setattr(functional, "make_functional", faulty)
    export(model, tmp_path / "model.onnx", WORKLOAD)
    assert traces == [fault == "other numbers", True]
    split = small.split(model, count=3)
    np.testing.assert_allclose(outputs(tmp_path / "model.onnx", split), small.outputs(model, split), atol=1e-6)
