"""What a model writes, greedily: with the key-value cache of its file where it has one, else reading all again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from backends.harness.scoring import Tokens, chunks, padded_behind, padded_in_front
from backends.models import Predict
from backends.onnx.decoding import Decoder, undecodable

Done = Callable[[list[int]], bool]  # whether what was written so far is complete
Step = Callable[[NDArray[np.int64]], NDArray[np.floating]]  # the tokens just written [n] -> scores [n, vocabulary]


@dataclass(frozen=True)
class Writer:
    """A model that writes: `session` is None for a torch model, and of no use where a file has no cache."""

    predict: Predict
    longest: int  # positions
    session: ort.InferenceSession | None = None

    @property
    def decodes(self) -> bool:
        """Whether a token costs one position, and not the whole text again."""
        return self.session is not None and not undecodable(self.session)

    @property
    def masks(self) -> bool:
        """Whether texts of several lengths can be decoded together."""
        return self.session is not None and any(i.name == "attention_mask" for i in self.session.get_inputs())

    def write(self, prompts: Sequence[Tokens], new_tokens: int, done: Done) -> list[list[int]]:
        """The most likely continuation of each prompt, up to the token that makes it `done`.

        Prompts are cut in front so that the new tokens have room, but never to less than half of what the model reads:
        where both are long, it is writing that ends at the last position.
        """
        kept = max(self.longest - new_tokens, (self.longest + 1) // 2)
        texts = [list(prompt)[-kept:] for prompt in prompts]
        order = sorted(range(len(texts)), key=lambda n: len(texts[n]), reverse=True)
        alike = [order] if not self.decodes or self.masks else _by_length(order, texts)
        found: list[list[int]] = [[] for _ in texts]
        for numbers in alike:
            start = 0
            for chunk in chunks([texts[n] for n in numbers]):
                most = min(new_tokens, self.longest - len(chunk[0]))
                written = _written(self._opened(chunk), len(chunk), most, done)
                for number, text in zip(numbers[start : start + len(chunk)], written, strict=True):
                    found[number] = text
                start += len(chunk)
        return found

    def _opened(self, texts: Sequence[Tokens]) -> tuple[NDArray[np.floating], Step]:
        """Scores behind the prompts, and how to go on."""
        if self.decodes:
            assert self.session is not None
            decoder, batch = Decoder(self.session, len(texts)), padded_in_front(texts)
            first = decoder.read(batch["input_ids"], batch["attention_mask"])
            return first, lambda tokens: decoder.read(tokens[:, None])
        so_far = [list(text) for text in texts]

        def scores() -> NDArray[np.floating]:
            logits = self.predict(padded_behind(so_far))
            return np.stack([logits[row, len(text) - 1] for row, text in enumerate(so_far)])

        def step(tokens: NDArray[np.int64]) -> NDArray[np.floating]:
            for text, token in zip(so_far, tokens.tolist(), strict=True):
                text.append(token)
            return scores()

        return scores(), step


def _by_length(order: Sequence[int], texts: Sequence[Tokens]) -> list[list[int]]:
    return [list(same) for _, same in groupby(order, key=lambda n: len(texts[n]))]


def _written(opened: tuple[NDArray[np.floating], Step], count: int, most: int, done: Done) -> list[list[int]]:
    scores, step = opened
    found: list[list[int]] = [[] for _ in range(count)]
    open_rows = set(range(count))
    for position in range(most):
        tokens = np.asarray(scores.argmax(-1), np.int64)
        for row in sorted(open_rows):
            found[row].append(int(tokens[row]))
            if done(found[row]):
                open_rows.discard(row)
        if not open_rows or position == most - 1:
            break
        scores = step(tokens)
    return found
