"""Measuring what this machine's runtime takes for each kind of work, with small generated graphs.

Every probe says how many units of each kind of work one call does. Least squares over many probes of different
mixtures gives the price of a unit; kinds that share probes are solved together, those known already are subtracted.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from backends.onnx.chain import Probe
from backends.onnx.options import CPU
from backends.onnx.probes import probes
from backends.onnx.session import session_inputs

BURST_SECONDS = 4e-4  # calls shorter than this are repeated within a turn
MOST_REPEATS = 50
WARM_UP_CALLS = 3
CLIFF = 1.3  # times slower reading from memory than from the cache, for there to be a cache at all
HALFWAY = 1.5  # working set ÷ cache at which half of the weights come from memory
ROUNDS = 80

# solved in this order: (probes of these groups, the kinds of work that they price)
STEPS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("float",), ("request", "start", "flop", "cache", "light", "plain", "function")),
    (("depthwise",), ("depthwise flop",)),
    (("recurrent",), ("step", "reread")),
    (("integer",), ("integer start", "integer flop", "integer cache", "quantize")),
    (("integer convolution",), ("integer conv flop", "window")),
    (("integer depthwise",), ("integer depthwise flop",)),
)
LEAST = 1e-7  # of a probe's time: no price is zero


@dataclass(frozen=True)
class Calibration:
    """Microseconds for a unit of each kind of work on this machine, and what else the probes tell."""

    prices: Mapping[str, float]
    cache_bytes: float
    fp16_factor: float  # arithmetic rate against fp32
    channel_block: int
    misfit: float  # median relative distance of the probes' times from what the prices say
    probes: int
    seconds: float

    def giga_per_second(self, kind: str) -> float:
        """Billions of operations or bytes in a second."""
        return 1e-3 / self.prices[kind]


def calibrate(
    threads: int, *, rounds: int = ROUNDS, largest_megabytes: int = 64, progress: Callable[[str], None] = lambda _: None
) -> Calibration:
    """Measure this machine with `threads` threads: some 60 graphs in turn, `rounds` times over; under a minute."""
    started = time.perf_counter()
    chosen = list(probes(largest_megabytes))
    progress(f"measuring {len(chosen)} small graphs with {threads} thread{'s' if threads > 1 else ''}")
    seconds = measure(chosen, threads, rounds)
    microseconds = dict(zip((p.name for p in chosen), (s * 1e6 for s in seconds), strict=True))
    prices: dict[str, float] = {}
    misfits: list[float] = []
    for groups, kinds in STEPS:
        members = [p for p in chosen if p.group in groups]
        misfits += solve(members, microseconds, kinds, prices)
    prices["memory"], cache_bytes = _memory(chosen, microseconds, prices)
    return Calibration(
        prices=prices,
        cache_bytes=cache_bytes,
        fp16_factor=_half(chosen, microseconds),
        channel_block=_channel_block(chosen, microseconds),
        misfit=float(np.median(misfits)),
        probes=len(chosen),
        seconds=time.perf_counter() - started,
    )


def measure(chosen: Sequence[Probe], threads: int, rounds: int) -> list[float]:
    """Seconds per call of each probe: all take turns, and the turns that no other process interrupted count."""
    calls = [_call(p.session(threads), p) for p in chosen]
    repeats = [max(1, min(MOST_REPEATS, round(BURST_SECONDS / _warm(call)))) for call in calls]
    turns = [[_burst(call, n) for call, n in zip(calls, repeats, strict=True)] for _ in range(rounds)]
    return [_undisturbed(samples) for samples in zip(*turns, strict=True)]


def _call(session: ort.InferenceSession, probe: Probe) -> Callable[[], object]:
    names, feed = [session.get_outputs()[0].name], {n: probe.feed[n] for n in session_inputs(session)}
    return lambda: session.run(names, feed)


def _warm(call: Callable[[], object]) -> float:
    return min(_timed(call) for _ in range(WARM_UP_CALLS))


def _burst(call: Callable[[], object], repeats: int) -> tuple[int, float]:
    """Interruptions during some calls in a row, and their median seconds; one call before brings the weights back."""
    call()
    before = _interruptions()
    seconds = float(np.median([_timed(call) for _ in range(repeats)]))
    return _interruptions() - before, seconds


def _undisturbed(samples: Sequence[tuple[int, float]]) -> float:
    """Median seconds of the turns that were interrupted least."""
    fewest = min(count for count, _ in samples)
    return float(np.median([seconds for count, seconds in samples if count == fewest]))


def _interruptions() -> int:
    """Times the system took the CPU from this process's threads since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return max(time.perf_counter() - start, 1e-9)


# -- prices ----------------------------------------------------------------------------------------


def solve(
    members: Sequence[Probe], microseconds: Mapping[str, float], kinds: Sequence[str], prices: dict[str, float]
) -> list[float]:
    """Add the prices of `kinds` to those known, and return each probe's relative misfit.

    Least squares of relative errors, with no price below zero.
    """
    from scipy.optimize import nnls

    measured = np.array([microseconds[p.name] for p in members])
    known = np.array([sum(prices.get(kind, 0.0) * units for kind, units in p.work.items()) for p in members])
    units = np.array([[p.work.get(kind, 0.0) for kind in kinds] for p in members])
    scale = units.max(axis=0)  # prices differ by ten orders of magnitude
    left = np.maximum(measured - known, 0.0)
    weight = np.array([p.weight for p in members]) / measured
    found, _ = nnls(units / scale * weight[:, None], left * weight)
    least = LEAST * measured.max()
    prices.update(zip(kinds, (float(p) for p in np.maximum(found, least) / scale), strict=True))
    told = known + units @ np.array([prices[kind] for kind in kinds])
    return [float(m) for m in np.abs(told / measured - 1)]


def _memory(
    chosen: Sequence[Probe], microseconds: Mapping[str, float], prices: Mapping[str, float]
) -> tuple[float, float]:
    """Microseconds for a byte of weights from memory, and the bytes that the cache holds.

    Products of a few rows read ever larger sets: where they slow down halfway is the end of the cache.
    """

    def per_byte(probe: Probe) -> float:
        known = sum(prices.get(kind, 0.0) * units for kind, units in probe.work.items())
        return max(microseconds[probe.name] - known, LEAST * microseconds[probe.name]) / probe.work["memory"]

    sweep = [(p.work["memory"], per_byte(p)) for p in chosen if p.group == "reading"]
    sizes, costs = np.log([s for s, _ in sweep]), np.log([c for _, c in sweep])
    slow = [per_byte(p) for p in chosen if p.group == "decoding"]
    memory = max(float(np.mean([*slow, sweep[-1][1]])), prices["cache"])
    if sweep[-1][1] < CLIFF * sweep[0][1]:
        return memory, float(np.exp(sizes[-1]))
    halfway = (costs[0] + costs[-1]) / 2
    above = int(np.argmax(costs >= halfway))
    end = np.interp(halfway, costs[above - 1 : above + 1], sizes[above - 1 : above + 1])
    return memory, float(np.exp(end) / HALFWAY)


def _half(chosen: Sequence[Probe], microseconds: Mapping[str, float]) -> float:
    """How many times faster fp16 products are than the same in fp32."""
    probe = next(p for p in chosen if p.group == "half")
    twin = next(p for p in chosen if p.name == probe.name.replace("fp16 ", ""))
    return microseconds[twin.name] / microseconds[probe.name]


def _channel_block(chosen: Sequence[Probe], microseconds: Mapping[str, float]) -> int:
    """Channels that convolutions compute at a time: the block whose whole multiples explain the times best."""
    widths = {p.shape[1]: microseconds[p.name] for p in chosen if p.group == "channels"}
    widest = max(widths)

    def misfit(block: int) -> float:
        told = {width: (-(-width // block) * block / widest) ** 2 for width in widths}
        return float(sum(abs(np.log(told[width] * widths[widest] / widths[width])) for width in widths))

    return min((16, 8, 4, 1), key=misfit)


def kernels() -> frozenset[str]:
    """Names of the operators that this ONNX Runtime has on the CPU."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

    return frozenset(k.op_name for k in get_all_opkernel_def() if k.provider == CPU)
