"""What calibration data did not tell of the matrices that the engine changed, in a line for each layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from backends.oneshot.engine import Done, done_by_path
from knowledge.techniques.base import Technique
from knowledge.values import Refusal


def cautions(technique: Technique, done: Sequence[Done]) -> Iterator[Refusal]:
    """One for each layer that read no token or zeros alone, or too few tokens, or whose Hessian took more damping.

    The last two concern methods that invert a Hessian: those with a parameter `damping`.
    """
    damping: float | None = getattr(technique, "damping", None)
    for path, parts in done_by_path(done).items():
        if unread := sum(not one.tokens for one in parts):
            which = f"{unread} of {len(parts)} matrices read no calibration token, or zeros alone"
            observed = f"{path}: {which}, and went by their size"
            yield _caution(technique, "calibration-unread", observed, "tokens that every matrix reads, not as zeros")
        if damping is None:
            continue
        if thin := sum(0 < one.tokens < one.matrix.read().shape[1] for one in parts):
            observed = f"{path}: {thin} of {len(parts)} matrices read fewer tokens than they have inputs"
            yield _caution(technique, "calibration-thin", observed, "as many tokens as inputs")
        if (most := max(one.damping for one in parts)) > damping:
            observed = f"{path}: its Hessian took a damping of {most:g}"
            yield _caution(technique, "hessian-damped", observed, f"a factor at {damping:g}")


def _caution(technique: Technique, rule: str, observed: str, required: str) -> Refusal:
    remedy = "give more calibration data"
    return Refusal(technique=technique.id, rule=rule, observed=observed, required=required, remedy=remedy)
