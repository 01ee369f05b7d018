"""The digits models' networks. Each tells its own facts (widths, blocks) for ModelInfo."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with batch norm beside a shortcut. [batch, inputs, h, w] -> [batch, outputs, h/s, w/s]"""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.b1 = nn.BatchNorm2d(outputs)
        self.c2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.b2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        projection = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Sequential(*([] if same else projection))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.b1(self.c1(x)))
        result: Tensor = F.relu(self.b2(self.c2(y)) + self.shortcut(x))
        return result


class ResidualNet(nn.Module):
    """Residual CNN: a stem, then stages of two blocks, 1, 2 and 4 times `width`. [batch, 1, 8, 8] -> [batch, 10]"""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        blocks: list[nn.Module] = []
        inputs = width
        for stage in range(3):
            outputs = width * 2**stage
            blocks += [ResidualBlock(inputs, outputs, 2 if stage else 1), ResidualBlock(outputs, outputs)]
            inputs = outputs
        self.layers = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, 10)

    def facts(self) -> dict[str, int]:
        return {"blocks": len(self.layers), "hidden_size": self.width}

    def forward(self, pixels: Tensor) -> Tensor:
        y: Tensor = self.fc(self.pool(self.layers(self.stem(pixels))).flatten(1))
        return y


class SeparableBlock(nn.Module):
    """A 3×3 convolution per channel, then a 1×1 convolution across channels, batch norm and ReLU after each."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.b1 = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.b2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.relu(self.b2(self.pointwise(F.relu(self.b1(self.depthwise(x))))))
        return y


class DepthwiseNet(nn.Module):
    """Depthwise separable CNN: `width` channels, twice as many on half the image. [batch, 1, 8, 8] -> [batch, 10]"""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.width = width
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        shapes = [(width, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 1), (2 * width, 4 * width, 2)]
        shapes += [(4 * width, 4 * width, 1)]
        self.layers = nn.Sequential(*(SeparableBlock(*shape) for shape in shapes))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, 10)

    def facts(self) -> dict[str, int]:
        return {"blocks": len(self.layers), "hidden_size": self.width}

    def forward(self, pixels: Tensor) -> Tensor:
        y: Tensor = self.fc(self.pool(self.layers(self.stem(pixels))).flatten(1))
        return y


class DigitsLSTM(nn.Module):
    """One LSTM over the rows of an image, read out after the last. [batch, time, 8] -> [batch, 10]"""

    def __init__(self, hidden: int = 192) -> None:
        super().__init__()
        self.hidden = hidden
        self.lstm = nn.LSTM(8, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, 10)

    def facts(self) -> dict[str, int]:
        return {"blocks": 1, "hidden_size": self.hidden}

    def forward(self, sequence: Tensor) -> Tensor:
        steps, _ = self.lstm(sequence)
        y: Tensor = self.fc(steps[:, -1])
        return y


class Attention(nn.Module):
    """Multi-head self-attention with a projection each for queries, keys, values and output. [batch, time, width]"""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.o = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        # [batch, time, inner] -> [batch, heads, time, inner / heads]; the inner width may be cut
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        y: Tensor = self.o((weights @ v).transpose(1, 2).flatten(2))
        return y


class Mlp(nn.Module):
    """Two linear layers with a GELU between. [..., width]"""

    def __init__(self, width: int, ffn: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, ffn), nn.Linear(ffn, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.gelu(self.up(x)))
        return y


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP, each added to what came in. [batch, time, width]"""

    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width, ffn)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class DigitsViT(nn.Module):
    """Vision transformer on 16 patches of 2×2 pixels. [batch, 1, 8, 8] -> [batch, 10]"""

    def __init__(self, width: int = 64, blocks: int = 4, heads: int = 4, ffn: int = 128) -> None:
        super().__init__()
        self.width, self.heads, self.ffn = width, heads, ffn
        self.patches = nn.Linear(4, width)
        self.positions = nn.Embedding(16, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, ffn) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def facts(self) -> dict[str, int]:
        widths = {"hidden_size": self.width, "ffn_size": self.ffn, "heads": self.heads, "kv_heads": self.heads}
        return {**widths, "head_dim": self.width // self.heads, "blocks": len(self.blocks)}

    def forward(self, pixels: Tensor) -> Tensor:
        # [batch, 1, 8, 8] -> [batch, 4, 16] -> [batch, 16, 4]
        x = self.patches(F.unfold(pixels, 2, stride=2).transpose(1, 2))
        x = x + self.positions(torch.arange(16, device=x.device))
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.head(self.norm(x).mean(1))
        return y
