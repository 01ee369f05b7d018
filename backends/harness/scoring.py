"""How likely a model finds given texts: log-probabilities of tokens behind a context, many at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from backends.models import Batch, Predict
from backends.tasks import BATCH_TOKENS, EVALUATION_BATCH, WORST_LOSS
from knowledge.values import InputError

BATCH_LOGITS = 2**27  # of one batch: half a gigabyte in float32

Tokens = Sequence[int]
Text = TypeVar("Text", bound=Tokens)


def score(
    predict: Predict, requests: Sequence[tuple[Tokens, Tokens]], longest: int, vocabulary: int = 0
) -> list[tuple[float, bool]]:
    """Log-probability (nats) of each continuation behind its context, and whether it is what greedy decoding writes.

    Contexts are cut in front to what the model can read: `longest` tokens, the last one of the continuation not among
    them. Requests that read the same tokens, as the one-token answers to a question do, share one pass. `vocabulary`: 0
    where it is not known. Raises InputError for a continuation or a token that the model cannot read.
    """
    wanted: dict[tuple[int, ...], list[int]] = {}  # what is read -> the requests that need it
    for number, (context, continuation) in enumerate(requests):
        _check(context, continuation, longest, vocabulary)
        read = (*context, *continuation)[-longest - 1 : -1]
        wanted.setdefault(tuple(read), []).append(number)
    found = [(0.0, True)] * len(requests)
    texts = sorted(wanted, key=len, reverse=True)  # alike in length, so that little is padded; the largest batch first
    for chunk in chunks(texts, vocabulary):
        logits = predict(padded_behind(chunk))
        for row, text in enumerate(chunk):
            for number in wanted[text]:
                continuation = requests[number][1]
                if continuation:
                    found[number] = _judged(logits[row, len(text) - len(continuation) : len(text)], continuation)
    return found


def _judged(logits: NDArray[np.floating], continuation: Tokens) -> tuple[float, bool]:
    """Of logits [tokens, vocabulary] that stand before each token."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    at = np.arange(len(continuation)), np.asarray(continuation)
    found = wide[at] - np.log(np.exp(wide).sum(-1))
    greedy = bool((wide.argmax(-1) == at[1]).all())
    return float(np.where(np.isfinite(found), found, -WORST_LOSS).sum()), greedy


def _check(context: Tokens, continuation: Tokens, longest: int, vocabulary: int) -> None:
    if len(continuation) > longest:
        problem = f"a text to score has {len(continuation)} tokens, and the model {longest} positions"
        raise InputError("lm-eval", "", problem, "choose a task with shorter answers")
    if continuation and not context:
        raise ValueError("a continuation is scored behind at least one token")
    if vocabulary and (top := max((*context, *continuation), default=0)) >= vocabulary:
        problem = f"the tokenizer gives token {top}, and the model knows 0 to {vocabulary - 1}"
        raise InputError("lm-eval", "", problem, "put the model's own tokenizer beside the file")


def chunks(texts: Sequence[Text], vocabulary: int = 0) -> Iterator[Sequence[Text]]:
    """Texts in their order, longest first, as many at once as a batch may hold."""
    most = min(BATCH_TOKENS, BATCH_LOGITS // vocabulary) if vocabulary else BATCH_TOKENS
    start = 0
    while start < len(texts):
        size = min(EVALUATION_BATCH, max(1, most // max(1, len(texts[start]))))
        yield texts[start : start + size]
        start += size


def padded_behind(texts: Sequence[Tokens]) -> Batch:
    """Texts as one batch; what follows a text changes nothing that stands before it."""
    return _padded(texts, front=False)


def padded_in_front(texts: Sequence[Tokens]) -> Batch:
    """Texts that end together, as decoding wants them."""
    return _padded(texts, front=True)


def _padded(texts: Sequence[Tokens], front: bool) -> Batch:
    length = max(map(len, texts))
    ids = np.zeros((len(texts), length), np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        part = slice(length - len(text), length) if front else slice(len(text))
        ids[row, part], mask[row, part] = text, 1
    return {"input_ids": ids, "attention_mask": mask}
