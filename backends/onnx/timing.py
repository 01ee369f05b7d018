"""Comparing two files' speed on a machine that is never quiet: alternate, repeat, and say how sure the ratio is."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from backends.onnx.session import Batch, completed, open_session
from knowledge.values import Latency, Ratio

WARM_UP_CALLS = 3
ROUNDS = 30
MOST_ROUNDS = 300
OPENINGS = 4
ENOUGH_SECONDS = 1.0  # of rounds, if the interval is narrow by then
LONGEST_SECONDS = 12.0  # of rounds, however wide it is
NARROW = 1.04  # high ÷ low
FEWEST_ROUNDS, VERY_LONG_SECONDS = 7, 60.0  # for models so slow that ROUNDS would take minutes
SHORTEST_SAMPLE_SECONDS = 5e-4  # calls shorter than this are repeated within a round
MOST_REPEATS = 50
RESAMPLES = 1000


@dataclass
class Round:
    """One turn of each session: seconds of each call, and how often the system took the CPU away meanwhile."""

    first: list[float]
    second: list[float]
    interruptions: int

    @cached_property
    def ratio(self) -> float:
        return median(self.first) / median(self.second)


def compare_files(
    first: Path, second: Path, feed: Batch, threads: int, rounds: int = ROUNDS
) -> tuple[Latency, Latency, Ratio]:
    """Milliseconds per call of both files, and how many times faster the second one is, with its 95 % interval.

    As `compare_latency`, over several openings of both files: where a session's memory and threads come to lie changes
    its speed by some percent for as long as it lives (small models' by more), so the openings count in the interval.
    """
    openings = []
    for opening in range(OPENINGS):
        order = (first, second) if opening % 2 == 0 else (second, first)
        opened = {path: open_session(path, threads) for path in order}
        other = opened[second] if second != first else open_session(second, threads)
        share = max(FEWEST_ROUNDS, -(-rounds // OPENINGS))
        openings.append(_sample(opened[first], other, feed, share, 1 / OPENINGS))
    return _summary(openings)


def compare_latency(
    first: ort.InferenceSession, second: ort.InferenceSession, feed: Batch, rounds: int = ROUNDS
) -> tuple[Latency, Latency, Ratio]:
    """The same for two open sessions, without what opening them anew would add to the interval.

    The sessions take turns (AB BA AB …), so that drift hits both. Where other processes interrupted some rounds, the
    quieter half counts. The ratio is the median over rounds of the paired ratios, its interval a bootstrap over rounds.
    At least `rounds` rounds, and more until the interval is narrow or 12 seconds are over.
    """
    return _summary([_sample(first, second, feed, rounds, 1.0)])


def quiet_rounds(rounds: list[Round]) -> list[Round]:
    """The half that was interrupted least; all of them where the machine was quiet."""
    limit = np.median([r.interruptions for r in rounds])
    return [r for r in rounds if r.interruptions <= limit]


def ratio_of(openings: Sequence[Sequence[Round]]) -> Ratio:
    """Median of the rounds' ratios; the 95 % interval draws openings, and rounds within each, anew."""
    groups = [np.array([r.ratio for r in rounds]) for rounds in openings]
    low, high = np.percentile(_resampled_medians(groups, np.random.default_rng(0)), [2.5, 97.5])
    return Ratio(value=float(np.median(np.concatenate(groups))), low=float(low), high=float(high))


def _resampled_medians(groups: Sequence[NDArray[np.float64]], rng: np.random.Generator) -> NDArray[np.float64]:
    """Medians of as many groups as there are, drawn anew, and of as many values of each, drawn anew. [RESAMPLES]"""
    lengths = np.array([len(group) for group in groups])
    widest = lengths.max()
    values = np.array([np.pad(group, (0, widest - len(group))) for group in groups])  # [groups, widest]
    chosen = rng.integers(0, len(groups), (RESAMPLES, len(groups)))
    own = lengths[chosen]  # [RESAMPLES, groups]
    places = (rng.random((*chosen.shape, widest)) * own[..., None]).astype(np.intp)
    drawn = np.where(np.arange(widest) < own[..., None], values[chosen[..., None], places], np.inf)
    ordered = np.sort(drawn.reshape(RESAMPLES, -1), axis=1)  # what is beyond a group's own length comes last
    middle = np.stack([own.sum(1) - 1, own.sum(1)], axis=1) // 2
    medians: NDArray[np.float64] = np.take_along_axis(ordered, middle, axis=1).mean(1)
    return medians


def _summary(openings: Sequence[Sequence[Round]]) -> tuple[Latency, Latency, Ratio]:
    used = [r for rounds in openings for r in rounds]
    firsts = [s for r in used for s in r.first]
    seconds = [s for r in used for s in r.second]
    return _latency(firsts), _latency(seconds), ratio_of(openings)


def _sample(
    first: ort.InferenceSession, second: ort.InferenceSession, feed: Batch, rounds: int, share: float
) -> list[Round]:
    """The rounds of two sessions that count; `share` of the seconds that a comparison may take."""
    calls = _call(first, feed), _call(second, feed)
    repeats = tuple(max(1, min(MOST_REPEATS, round(SHORTEST_SAMPLE_SECONDS / _warm(call)))) for call in calls)
    done: list[Round] = []
    start = time.perf_counter()
    while not _enough(done, (time.perf_counter() - start) / share, rounds):
        done.append(_round(calls, repeats, swapped=len(done) % 2 == 1))
    return quiet_rounds(done)


def _enough(done: list[Round], seconds: float, rounds: int) -> bool:
    if len(done) < FEWEST_ROUNDS or (len(done) < rounds and seconds < VERY_LONG_SECONDS):
        return False
    if len(done) >= max(rounds, MOST_ROUNDS) or seconds > LONGEST_SECONDS:
        return True
    if seconds < ENOUGH_SECONDS or len(done) % 10:  # the interval costs some milliseconds: look at it now and then
        return False
    found = ratio_of([quiet_rounds(done)])
    return found.high <= NARROW * found.low


def _round(
    calls: tuple[Callable[[], object], Callable[[], object]], repeats: tuple[int, ...], *, swapped: bool
) -> Round:
    samples: tuple[list[float], list[float]] = ([], [])
    before = interruptions()
    for side in (1, 0) if swapped else (0, 1):
        samples[side].extend(_timed(calls[side]) for _ in range(repeats[side]))
    return Round(*samples, interruptions() - before)


def interruptions() -> int:
    """Times the system took the CPU from this process's threads since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _call(session: ort.InferenceSession, feed: Batch) -> Callable[[], object]:
    names = [session.get_outputs()[0].name]
    inputs = completed(feed, session)
    return lambda: session.run(names, inputs)


def _warm(call: Callable[[], object]) -> float:
    """Seconds of the fastest warm call."""
    return min([_timed(call) for _ in range(WARM_UP_CALLS + 1)][1:])


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return max(time.perf_counter() - start, 1e-9)


def _latency(seconds: list[float]) -> Latency:
    p50, p95 = np.percentile(np.array(seconds) * 1e3, [50, 95])
    return Latency(p50=float(p50), p95=float(p95))
