"""What is summed up over batches: shared by matrices that read the same, and never by others."""

import copy
import weakref

import pytest
import torch
from torch import nn

from backends.oneshot.blocks import Entry
from backends.oneshot.engine import compress
from backends.oneshot.matrices import layer_paths, matrices, watched
from backends.oneshot.methods import gptq_method, sparsegpt_method, wanda_method
from backends.oneshot.statistics import Inputs
from backends.oneshot.sums import Sums, by_key, summed

WIDTH = 16
METHODS = {
    "sparsegpt": lambda: sparsegpt_method(lambda path: 0.5),
    "gptq": lambda: gptq_method(3, 8, symmetric=False),
    "wanda": lambda: wanda_method(lambda path: 0.5),
}


class Block(nn.Module):
    """q and k read what enters the block, the third layer what they give."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + self.o(self.mixed(x))

    def mixed(self, x):
        return self.q(x).tanh() * self.k(x)


class InTurn(Block):
    """k reads the same as q in every other batch."""

    def mixed(self, x):
        return self.q(x).tanh() * self.k(x if self.calls % 2 else 2 * x)


class Twice(Block):
    """q is called once more than k."""

    def mixed(self, x):
        return self.q(self.q(x)).tanh() * self.k(x)


class Crossed(Block):
    """Both are called twice, k with the same tensor."""

    def mixed(self, x):
        y = 2 * x
        return self.q(x) * self.k(x) * self.k(x) * self.q(y)


class Changing(Block):
    """What q has read is another in place when k reads it."""

    def mixed(self, x):
        x = x.clone()
        return self.q(x).tanh() * self.k(x.mul_(torch.arange(WIDTH) % 3))


class Late(Block):
    """k is first called in the second batch."""

    def mixed(self, x):
        return self.q(x).tanh() * (self.k(x) if self.calls > 1 else 1)


BLOCKS = [Block, InTurn, Twice, Crossed, Changing, Late]


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 8, WIDTH, generator=generator) for _ in range(4)]


def block(kind):
    torch.manual_seed(1)
    return kind().eval()


def read_by_hooks(module, batches):
    """All that each layer reads, by plain hooks. {path: [tokens, in]}"""
    found = {path: [] for path, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    for path, read in found.items():
        module.get_submodule(path).register_forward_pre_hook(lambda _, args, read=read: read.append(args[0].clone()))
    with torch.no_grad():
        for batch in batches:
            module(batch)
    return {path: torch.cat([x.flatten(0, 1) for x in read]) for path, read in found.items()}


def summed_up(module, batches, method):
    found = [matrix for path in layer_paths(module, "") for matrix in matrices(module, path)]

    def read(sums):
        module.calls = 0
        with torch.no_grad(), watched(module, None, sums.see):
            for batch in batches:
                module(batch)

    return summed(found, method, read)


@pytest.mark.parametrize("method", ["sparsegpt", "wanda"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_each_sum_holds_what_its_layer_reads(kind, method, batches):
    sums = summed_up(block(kind), batches, METHODS[method]())
    for key, matrix in sums.todo.items():
        x = read_by_hooks(block(kind), batches)[matrix.path]
        found = sums.sums[key]
        assert found.tokens == len(x)
        torch.testing.assert_close(found.norms, x.norm(dim=0))
        if method == "sparsegpt":
            torch.testing.assert_close(found.products, x.t() @ x)


def test_what_reads_the_same_has_one_sum(batches):
    sums = summed_up(block(Block), batches, METHODS["sparsegpt"]())
    q, k, o = (sums.sums[key] for key, _ in sorted(sums.todo.items(), key=lambda one: "qko".index(one[1].path)))
    assert q is k
    assert q is not o


def test_a_sum_goes_with_the_last_that_reads_it(batches):
    sums = summed_up(block(Block), batches, METHODS["sparsegpt"]())
    held = [weakref.ref(one) for one in sums.sums.values()]
    for key in list(sums.todo):
        assert sums.take(key).tokens == sum(x.shape[0] * x.shape[1] for x in batches)
    assert [one() for one in held] == [None] * 3
    assert sums.take(next(iter(sums.todo))).tokens == 0  # as one that nothing was read by


@pytest.mark.parametrize("method", METHODS)
def test_batches_give_what_one_of_them_all_gives_by_sums_of_their_own(method, batches, monkeypatch):
    """Shared sums change no bit."""

    def changed(shared):
        module = block(Block)
        if not shared:
            monkeypatch.setattr("backends.oneshot.sums.Sums.__init__.__defaults__", (False,))
        entries = [Entry(batch.clone(), [((), {})], None) for batch in batches]
        found = [matrix for path in "qko" for matrix in matrices(module, path)]
        list(compress([module], entries, {0: found}, METHODS[method](), None))
        return copy.deepcopy(module.state_dict())

    together, alone = changed(True), changed(False)
    assert all(torch.equal(together[name], alone[name]) for name in together)
    assert not torch.equal(together["q.weight"], block(Block).q.weight)


@pytest.mark.parametrize("kind", [Block, Changing])
def test_one_batch_gives_what_sums_of_their_own_give(kind, batches):
    """What a layer reads is not what another read before it was written to in place."""
    method, module = METHODS["wanda"](), block(kind)
    found = [matrix for path in "qk" for matrix in matrices(module, path)]
    read = {matrix.path: read_by_hooks(block(kind), batches[:1])[matrix.path] for matrix in found}
    list(compress([module], [Entry(batches[0].clone(), [((), {})], None)], {0: found}, method, None))
    for matrix in found:
        x = read[matrix.path]
        inputs = Inputs(WIDTH)
        inputs.add(x, gram=False)
        wanted = method.apply(matrix.path, getattr(block(kind), matrix.path).weight.detach(), inputs).weight
        torch.testing.assert_close(matrix.read(), wanted)


def test_tensors_made_for_inference_may_have_changed():
    module = block(Block)
    sums = Sums([m for path in "qk" for m in matrices(module, path)], METHODS["sparsegpt"]())
    with torch.inference_mode():
        x = torch.ones(1, 4, WIDTH)
        sums.see(module.q, "weight", None, x, None)
        sums.see(module.k, "weight", None, x.mul_(2), None)
    first, second = sums.sums.values()
    assert torch.equal(second.products, 4 * first.products)


def test_keys_are_what_the_engine_calls_matrices():
    module = block(Block)
    found = matrices(module, "q")
    assert by_key(found) == Sums(found, METHODS["wanda"]()).todo == {(id(module.q), "weight", None): found[0]}
