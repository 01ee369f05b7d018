"""LSTM layers in the form that ONNX has for them.

The exporter writes a torch LSTM as slices and concatenations around the operator, and may freeze the sequence length of
a deep one to the example's. Emitting the operator ourselves avoids both and stores the weights once, ready to run.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

FROM_TORCH = (0, 3, 1, 2)  # torch orders the gates i f g o, ONNX i o f g (its c is torch's g)


def gates_for_onnx(weight: Tensor) -> Tensor:
    """Reorder the gates of a torch LSTM parameter [4 * hidden, ...] for ONNX."""
    chunks = weight.detach().chunk(4)
    return torch.cat([chunks[i] for i in FROM_TORCH])


class OnnxLstm(nn.Module):
    """An nn.LSTM that exports as one LSTM operator per layer. Outside an export it computes zeros."""

    def __init__(self, source: nn.LSTM) -> None:
        super().__init__()
        self.hidden_size, self.layers, self.batch_first = source.hidden_size, source.num_layers, source.batch_first
        suffixes = ("", "_reverse") if source.bidirectional else ("",)
        self.directions = len(suffixes)
        for layer in range(self.layers):
            for name in ("weight_ih", "weight_hh", "bias"):
                stacked = torch.stack([_parameter(source, f"{name}_l{layer}", s) for s in suffixes])
                # weights [directions, 4 * hidden, inputs or hidden], biases [directions, 8 * hidden]
                self.register_buffer(f"{name}_l{layer}", stacked)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if self.batch_first:
            x = x.transpose(0, 1)  # [time, batch, inputs]
        last_h, last_c = [], []
        for layer in range(self.layers):
            x, h, c = self._layer(layer, x, state)
            last_h.append(h)
            last_c.append(c)
        if self.batch_first:
            x = x.transpose(0, 1)
        return x, (torch.cat(last_h), torch.cat(last_c))

    def _layer(self, layer: int, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        time, batch = x.shape[:2]
        inputs: list[Tensor | None] = [x, *(getattr(self, f"{n}_l{layer}") for n in ("weight_ih", "weight_hh", "bias"))]
        if state is not None:
            rows = slice(layer * self.directions, (layer + 1) * self.directions)
            inputs += [None, state[0][rows], state[1][rows]]
        direction = "bidirectional" if self.directions == 2 else "forward"
        sides = (self.directions, batch, self.hidden_size)
        y, h, c = torch.onnx.ops.symbolic_multi_out(
            "LSTM",
            inputs,
            attrs={"hidden_size": self.hidden_size, "direction": direction},
            dtypes=(x.dtype,) * 3,
            shapes=((time, *sides), sides, sides),
        )
        # y: [time, directions, batch, hidden] -> [time, batch, directions * hidden]
        return y.transpose(1, 2).reshape(time, batch, self.directions * self.hidden_size), h, c


def _parameter(source: nn.LSTM, name: str, suffix: str) -> Tensor:
    if name.startswith("weight"):
        return gates_for_onnx(getattr(source, name + suffix))
    if not source.bias:
        return torch.zeros(8 * source.hidden_size)
    halves = [getattr(source, name.replace("bias", half) + suffix) for half in ("bias_ih", "bias_hh")]
    return torch.cat([gates_for_onnx(half) for half in halves])


def replace_lstms(module: nn.Module) -> None:
    """Put OnnxLstm in the place of every batched nn.LSTM without projection, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.LSTM) and child.proj_size == 0:
            setattr(module, name, OnnxLstm(child))
        else:
            replace_lstms(child)
