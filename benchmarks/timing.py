"""Comparing two files on one thread by processor time: other processes, which share the cores, do not add to it.

Wall time does not do where the machine is busy: a call that is longer than the scheduler's slice is interrupted every
time, a shorter one hardly ever, and the ratio is far too large.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from backends.onnx.session import Batch, completed, open_session

OPENINGS = 4  # where a session's memory comes to lie changes its speed for as long as it lives
ROUNDS = 6  # of each opening; the two files take turns
SHORTEST_SAMPLE_SECONDS = 5e-3  # shorter calls are repeated
MOST_REPEATS = 50


def processor_time(first: Path, second: Path, feed: Batch) -> tuple[float, float, float]:
    """Milliseconds of one call of each file on one thread, and how many times faster the second one is.

    Medians over openings and rounds; the ratio is the median of the rounds' own ratios.
    """
    pairs = []
    for opening in range(OPENINGS):
        sessions = [open_session(path, 1) for path in ((first, second), (second, first))[opening % 2]]
        if opening % 2:
            sessions.reverse()
        pairs += _rounds(sessions, feed)
    seconds = np.array(pairs)  # [rounds, 2]
    before, after = np.median(seconds, axis=0) * 1e3
    return float(before), float(after), float(np.median(seconds[:, 0] / seconds[:, 1]))


def _rounds(sessions: list[ort.InferenceSession], feed: Batch) -> list[tuple[float, float]]:
    repeats = []
    for session in sessions:
        seconds = min(_seconds(session, feed, 1) for _ in range(3))  # the first ones warm up
        repeats.append(max(1, min(MOST_REPEATS, round(SHORTEST_SAMPLE_SECONDS / seconds))))
    found = []
    for number in range(ROUNDS):
        measured = {side: _seconds(sessions[side], feed, repeats[side]) for side in ((0, 1), (1, 0))[number % 2]}
        found.append((measured[0], measured[1]))
    return found


def _seconds(session: ort.InferenceSession, feed: Batch, repeats: int) -> float:
    """Processor seconds of one call; with one thread, a session computes on the caller's."""
    names = [session.get_outputs()[0].name]
    inputs = completed(feed, session)
    started = time.thread_time()
    for _ in range(repeats):
        session.run(names, inputs)
    return max((time.thread_time() - started) / repeats, 1e-9)
