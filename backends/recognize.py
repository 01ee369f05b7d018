"""What kind of model a module is, read from its parts."""

from __future__ import annotations

from typing import Any, cast, get_args

from torch import nn

from backends.layer_kinds import is_dense
from knowledge.layers import Family
from knowledge.tasks import check_told
from knowledge.values import InputError

FAMILIES: tuple[str, ...] = get_args(Family)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

_EXPERT_FIELDS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def expert_count(config: Any) -> int:
    """Experts per block that a transformers configuration declares; 0 for a dense model."""
    counts = [getattr(config, name, 0) for name in _EXPERT_FIELDS]
    return max((c for c in counts if isinstance(c, int)), default=0)


def has_attention(module: nn.Module) -> bool:
    """Whether some part projects queries, keys and values: torch's attention, or one with linear layers."""
    for part in module.modules():
        if isinstance(part, nn.MultiheadAttention):
            return True
        if "attention" in type(part).__name__.lower():
            projections = [p for p in part.modules() if is_dense(p)]
            if len(projections) >= 2:  # squeeze-and-excite blocks call themselves attention, but hold convolutions
                return True
    return False


def _config(module: nn.Module, name: str) -> int:
    """A number of the module's own configuration, of several stages the largest; 0 where it has none."""
    config: Any = getattr(module, "config", None)
    found = getattr(config, name, 0) or 0
    return max(map(int, found)) if isinstance(found, list | tuple) else int(found)


def has_experts(module: nn.Module) -> bool:
    """Whether some part is a set of experts."""
    named = any(name.rsplit(".", 1)[-1] == "experts" for name, _ in module.named_modules())
    return named or expert_count(getattr(module, "config", None)) > 1


def family(module: nn.Module, source: str, told: str | None = None) -> Family:
    """Architecture family of a module; `told` decides between those that it shows signs of, or where it shows none.

    Raises InputError asking for --arch when unclear, and for a family that the module shows no sign of.
    """
    signs = _signs(module)
    if told is not None:
        if signs and told not in signs:
            check_told("arch", told, signs[0], source)
        return cast(Family, told)
    if signs and signs != ["rnn", "cnn"]:
        return signs[0]
    problem = "holds recurrent and convolution layers" if signs else "holds no layer that tells its family"
    raise InputError(
        "arch", source, f"the architecture is unclear: it {problem}", f"add --arch ({', '.join(FAMILIES)})"
    )


def _signs(module: nn.Module) -> list[Family]:
    """Families whose layers a module holds, the one that decides first; a configuration that tells one is believed."""
    if expert_count(getattr(module, "config", None)) > 1:
        return ["moe"]
    if _config(module, "num_attention_heads"):
        return ["moe", "transformer"] if has_experts(module) else ["transformer"]
    parts = list(module.modules())
    found: dict[Family, bool] = {
        "moe": has_experts(module),
        "transformer": has_attention(module),
        "rnn": any(isinstance(p, RECURRENT) for p in parts),
        "cnn": any(isinstance(p, CONVOLUTION) for p in parts),
    }
    return [name for name, there in found.items() if there]


def subfamily(module: nn.Module, kind: Family, task: str) -> str:
    """The finer kind that rules look at: encoder, decoder, vision-transformer, residual-cnn, depthwise-cnn, lstm, …"""
    if kind == "moe":
        return "moe"
    if kind == "rnn":
        names = {type(p).__name__.lower().removesuffix("cell") for p in module.modules() if isinstance(p, RECURRENT)}
        return min(names, default="rnn")
    if kind == "transformer":
        vision = task == "image-classification"
        return "vision-transformer" if vision else "decoder" if task == "causal-lm" else "encoder"
    convolutions = [p for p in module.modules() if isinstance(p, CONVOLUTION)]
    if any(p.groups > 1 and p.groups == p.in_channels for p in convolutions):
        return "depthwise-cnn"
    named = (type(p).__name__.lower() for p in module.modules())
    residual = any(word in name for name in named for word in ("residual", "resnet", "basicblock", "bottleneck"))
    return "residual-cnn" if residual else "plain-cnn"
