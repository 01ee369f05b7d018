"""Decoding with a file that has a key-value cache: greedy tokens, and how fast the first and the next ones come."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from backends.onnx.cache_names import PAST, PRESENT
from backends.onnx.session import completed, open_session
from backends.onnx.timing import (
    FEWEST_ROUNDS,
    NARROW,
    OPENINGS,
    Round,
    interruptions,
    quiet_rounds,
    ratio_of,
)
from backends.onnx.verification import Decoding, DecodingSpeed
from backends.onnx.workload import session_feed
from knowledge.faults import first_line
from knowledge.values import RunFailed, Workload

if TYPE_CHECKING:
    from backends.data import Split

NEW_TOKENS = 16
WARM_UP_TOKENS = 3
ENOUGH_SECONDS, LONGEST_SECONDS = 1.0, 8.0  # of rounds: if the interval is narrow by then, however wide it is


def undecodable(session: ort.InferenceSession) -> str:
    """Why a file cannot write token by token, in a clause; empty where it can."""
    inputs = {spec.name for spec in session.get_inputs()}
    past = {name for name in inputs if name.startswith(PAST)}
    returned = {spec.name.replace(PRESENT, PAST) for spec in session.get_outputs()}
    if not past:
        return "has no key-value cache"
    if not past <= returned:
        return "does not return all keys and values that it takes"
    more = inputs - past - {"input_ids", "attention_mask"}
    return f"reads {min(more)} beside its tokens" if more or "input_ids" not in inputs else ""


class Decoder:
    """One text, or a batch of them padded in front, and what a session has cached of it.

    Keys and values stay with the runtime: nothing is copied from one token to the next.
    """

    def __init__(self, session: ort.InferenceSession, batch: int) -> None:
        self.session = session
        self.names = [value.name for value in session.get_outputs()]
        self.mask = np.zeros((batch, 0), np.int64)
        self._reads_mask = any(spec.name == "attention_mask" for spec in session.get_inputs())
        self._past: dict[str, ort.OrtValue] = {}

    def read(self, ids: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Take in more tokens; scores of the token that follows the last one: ids [batch, n] -> [batch, vocabulary].

        Raises RunFailed where the graph cannot compute.
        """
        added = np.ones(ids.shape, np.int64) if mask is None else mask
        self.mask = np.concatenate([self.mask, added], axis=1)
        feed = {"input_ids": ids} | ({"attention_mask": self.mask} if self._reads_mask else {})
        arrays = feed if self._past else completed(feed, self.session)
        values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        try:
            found = self.session.run_with_ort_values(self.names, values | self._past)
        except Exception as error:  # the runtime's exception classes share no public base
            raise RunFailed(f"decoding failed at token {self.mask.shape[1]}: {first_line(error)[:200]}") from error
        self._past = {
            name.replace(PRESENT, PAST): value
            for name, value in zip(self.names, found, strict=True)
            if name.startswith(PRESENT)
        }
        logits: np.ndarray = found[0].numpy()[:, -1]
        return logits


def greedy(
    session: ort.InferenceSession,
    ids: np.ndarray,
    new_tokens: int,
    mask: np.ndarray | None = None,
    chunk: int | None = None,
) -> np.ndarray:
    """The most likely continuation, token by token: ids [batch, n] -> [batch, new_tokens].

    Shorter texts are padded in front, with zeros in `mask`. `chunk`: read the prompt so many tokens at a time.
    """
    decoder = Decoder(session, len(ids))
    size = chunk or ids.shape[1]
    for start in range(0, ids.shape[1], size):
        part = slice(start, start + size)
        scores = decoder.read(ids[:, part], None if mask is None else mask[:, part])
    found = [_best(scores)]
    while len(found) < new_tokens:
        found.append(_best(decoder.read(found[-1])))
    return np.concatenate(found, axis=1)


def _best(scores: np.ndarray) -> np.ndarray:
    return np.asarray(scores.argmax(-1)[:, None], np.int64)


def read_in_two_parts(session: ort.InferenceSession, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Logits of whole texts, of which the second half is read when the first is cached: [batch, n, vocabulary].

    Raises RunFailed where the graph cannot compute.
    """
    cut = max(1, batch["input_ids"].shape[1] // 2)
    names = [value.name for value in session.get_outputs()]
    earlier = {name: array[:, :cut] for name, array in batch.items()}
    later = {name: array if name == "attention_mask" else array[:, cut:] for name, array in batch.items()}
    try:
        first = dict(zip(names, session.run(names, completed(earlier, session)), strict=True))
        if not later["input_ids"].size:
            return np.asarray(first[names[0]])
        past = {name.replace(PRESENT, PAST): array for name, array in first.items()}
        second = session.run(names[:1], completed({**past, **later}, session))[0]
    except Exception as error:  # the runtime's exception classes share no public base
        raise RunFailed(f"with a cache, ONNX Runtime failed: {first_line(error)[:200]}") from error
    return np.concatenate([first[names[0]], second], axis=1)


# -- measuring -------------------------------------------------------------------------------------


def measure_decoding(
    first: Path,
    second: Path,
    split: Split,
    workload: Workload,
    longest: int = 0,
    prompts: Sequence[int] = (),
    batches: Sequence[int] = (),
) -> tuple[Decoding, ...]:
    """`compare_decoding` on real tokens at every prompt length and batch size.

    Those not given are the workload's, and batch 1. `longest`: positions that the model has (0: no limit); new tokens,
    then prompts, are cut to it.
    """
    session = open_session(first, 1)
    new_tokens = min(NEW_TOKENS, longest - 1) if longest else NEW_TOKENS
    most = longest - new_tokens if longest else None
    usual = workload.seq_len or split.inputs["input_ids"].shape[1]
    found = []
    for length in prompts or (usual,):
        for batch in sorted({*batches} or {1, workload.batch}):
            shape = workload.model_copy(update={"batch": batch, "seq_len": min(length, most or length)})
            ids = session_feed(session, split, shape)["input_ids"]
            found.append(compare_decoding(first, second, ids, workload.threads, new_tokens))
    return tuple(found)


def compare_decoding(
    first: Path, second: Path, prompts: np.ndarray, threads: int, new_tokens: int = NEW_TOKENS
) -> Decoding:
    """Time to the first token and tokens per second of two files: prompts [batch, prompt tokens] without padding.

    In every round each file reads the prompts and decodes `new_tokens` more; the files take turns, over several
    openings, as in `timing.compare_files`. The ratios are medians of the rounds' ratios with a 95 % interval.
    """
    first_tokens: list[list[Round]] = []
    next_tokens: list[list[Round]] = []
    for opening in range(OPENINGS):
        order = (first, second) if opening % 2 == 0 else (second, first)
        opened = {path: open_session(path, threads) for path in order}
        sessions = opened[first], opened[second] if second != first else open_session(second, threads)
        starts, steps = _sample(sessions, prompts, new_tokens)
        first_tokens.append(quiet_rounds(starts))
        next_tokens.append(quiet_rounds(steps))
    batch, length = prompts.shape
    speeds = [
        DecodingSpeed(
            time_to_first_token_ms_p50=1e3 * _median(first_tokens, side),
            tokens_per_second_p50=batch / _median(next_tokens, side),
        )
        for side in ("first", "second")
    ]
    return Decoding(
        prompt_tokens=length,
        batch=batch,
        new_tokens=new_tokens,
        baseline=speeds[0],
        compressed=speeds[1],
        first_token_speedup=ratio_of(first_tokens),
        decoding_speedup=ratio_of(next_tokens),
    )


def _median(openings: Sequence[Sequence[Round]], side: str) -> float:
    return float(np.median([s for rounds in openings for r in rounds for s in getattr(r, side)]))


def _sample(
    sessions: tuple[ort.InferenceSession, ort.InferenceSession], prompts: np.ndarray, new_tokens: int
) -> tuple[list[Round], list[Round]]:
    """Rounds of one opening: the prompts, and the tokens after them."""
    for session in sessions:
        _generate(session, prompts, WARM_UP_TOKENS)
    starts: list[Round] = []
    steps: list[Round] = []
    began = time.perf_counter()
    while not _enough(steps, (time.perf_counter() - began) * OPENINGS):
        before = interruptions()
        order = (1, 0) if len(steps) % 2 else (0, 1)
        timed = {side: _generate(sessions[side], prompts, new_tokens) for side in order}
        taken = interruptions() - before
        starts.append(Round(timed[0][:1], timed[1][:1], taken))
        steps.append(Round(timed[0][1:], timed[1][1:], taken))
    return starts, steps


def _enough(steps: list[Round], seconds: float) -> bool:
    if len(steps) * OPENINGS < FEWEST_ROUNDS:
        return False
    if seconds > LONGEST_SECONDS:
        return True
    if seconds < ENOUGH_SECONDS or len(steps) < FEWEST_ROUNDS:
        return False
    found = ratio_of([quiet_rounds(steps)])
    return found.high <= NARROW * found.low


def _generate(session: ort.InferenceSession, prompts: np.ndarray, new_tokens: int) -> list[float]:
    """Seconds of the prompts and their first token, then of each token after it."""
    decoder = Decoder(session, len(prompts))
    tokens, seconds = prompts, []
    for _ in range(new_tokens + 1):
        start = time.perf_counter()
        tokens = _best(decoder.read(tokens))
        seconds.append(time.perf_counter() - start)
    return seconds
