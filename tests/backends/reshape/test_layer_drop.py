import numpy as np
import pytest
import torch

from backends.blocks import drop_blocks, find_blocks
from backends.reshape.layer_drop import apply, block_influence, measure
from backends.surgery import replace_module
from knowledge.techniques.reshape import LayerDrop
from knowledge.values import InputError

KINDS = ["llama", "gpt2", "bert", "mixtral"]


def influence_by_loops(before, after, mask):
    found = []
    for b in range(before.shape[0]):
        for t in range(before.shape[1]):
            if mask[b, t]:
                x, y = before[b, t].double().numpy(), after[b, t].double().numpy()
                found.append(1 - x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))
    return sum(found), len(found)


def test_block_influence_agrees_with_loops():
    torch.manual_seed(0)
    before, after = torch.randn(3, 5, 7), torch.randn(3, 5, 7)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    total, count = block_influence(before, after, mask)
    assert (pytest.approx(total), count) == influence_by_loops(before, after, mask)


class Skipped(torch.nn.Module):
    """A block that hands its input on."""

    def __init__(self, returns_tuple):
        super().__init__()
        self.returns_tuple = returns_tuple

    def forward(self, hidden_states, *args, **kwargs):
        return (hidden_states,) if self.returns_tuple else hidden_states


@pytest.mark.parametrize("kind", KINDS)
def test_dropping_equals_skipping(kind, small):
    model = small.transformer(kind)
    split = small.split(model, 6)
    skipping = model.clone()
    path, blocks = find_blocks(skipping.module)
    with torch.no_grad():
        hidden = torch.randn(1, 3, 32)
        extra = (
            {"position_embeddings": (torch.ones(1, 3, 8), torch.zeros(1, 3, 8))} if kind in ("llama", "mixtral") else {}
        )
        returns_tuple = isinstance(blocks[0](hidden, attention_mask=None, **extra), tuple)
    for index in (1, 2):
        replace_module(skipping.module, f"{path}.{index}", Skipped(returns_tuple))
    drop_blocks(model.module, (1, 2))
    assert torch.equal(small.outputs(model, split), small.outputs(skipping, split))
    assert model.module.config.num_hidden_layers == 2
    indices = [m.layer_idx for m in model.module.modules() if hasattr(m, "layer_idx")]
    assert sorted(set(indices)) in ([], [0, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_idlest_blocks_go(kind, small):
    model = small.transformer(kind, blocks=5)
    _, blocks = find_blocks(model.module)
    with torch.no_grad():
        for index in (1, 3):  # what a block adds shrinks with its weights
            for p in blocks[index].parameters():
                if p.dim() >= 2:
                    p.mul_(0.05)
    context = small.context(model)
    influence = measure(model, context.data.calibration)
    dropped, decision = apply(LayerDrop(ratio=0.4), model, context)
    assert decision.dropped_blocks == tuple(sorted(np.argsort(influence)[:2].tolist()))
    if kind != "bert":  # its norms come after the sum, so that small weights do not make a block idle
        assert decision.dropped_blocks == (1, 3)
    assert dropped.info.blocks == len(find_blocks(dropped.module)[1]) == 3


def test_padding_does_not_count(small):
    model = small.transformer("llama")
    split = small.split(model, 8)
    other = {name: values.copy() for name, values in split.inputs.items()}
    other["input_ids"][other["attention_mask"] == 0] = 5
    assert measure(model, split) == pytest.approx(measure(model, type(split)(other)), abs=1e-6)


def test_no_blocks_and_no_samples_are_bad_input(small):
    with pytest.raises(InputError, match="repeated blocks"):
        find_blocks(small.lstm().module)
    model = small.transformer("llama")
    with pytest.raises(InputError, match="no samples"):
        measure(model, small.split(model, 4).head(0))


def test_what_cannot_be_dropped_is_a_mistake(small):
    module = small.transformer("llama").module
    for wrong in ((0, 1, 2, 3), (4,)):
        with pytest.raises(ValueError, match="cannot drop"):
            drop_blocks(module, wrong)
