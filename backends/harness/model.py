"""A model of ours as lm-eval sees one: texts in, likelihoods and texts out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from backends.harness.scoring import score
from backends.harness.writing import Writer
from knowledge.values import InputError

TOKENS_OF_A_CHARACTER = 4  # at most, where tokens are bytes


class HarnessModel(TemplateLM):  # type: ignore[misc]  # the library is optional, and has no types where it is missing
    """An ONNX file or a torch model behind a tokenizer. Greedy; texts are tokenized as lm-eval's own models do it."""

    def __init__(self, writer: Writer, tokenizer: Any, vocabulary: int = 0) -> None:
        """Raises InputError where the tokenizer knows no token that ends a text."""
        super().__init__()
        self.writer, self.tokenizer, self.vocabulary = writer, tokenizer, vocabulary
        self.max_length = writer.longest
        if tokenizer.eos_token_id is None:
            raise InputError("lm-eval", "", "the tokenizer has no token that ends a text", "set its eos_token")

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text of which the first token is scored too."""
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """Tokens of a text, with those that the tokenizer itself puts before it, unless they are there already."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        more = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **more))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **options: Any
    ) -> list[tuple[float, bool]]:
        texts = [(context, continuation) for _, context, continuation in requests]
        return score(self.writer.predict, texts, self.max_length, self.vocabulary)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, however long: in windows, each token scored once."""
        windows: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            found = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            parts = [make_disjoint_window(pair) for pair in found]
            windows += parts
            owners += [number] * len(parts)
        totals = [0.0] * len(requests)
        for number, (value, _) in zip(
            owners, score(self.writer.predict, windows, self.max_length, self.vocabulary), strict=True
        ):
            totals[number] += value
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations, each up to the first of its stop texts."""
        alike: dict[str, list[int]] = {}  # requests of the same options go together
        for number, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(number)
        found = [""] * len(requests)
        for numbers in alike.values():
            options = normalize_gen_kwargs(requests[numbers[0]].args[1])
            texts = self._continued([requests[n].args[0] for n in numbers], options)
            for number, text in zip(numbers, texts, strict=True):
                found[number] = text
        return found

    def _continued(self, contexts: Sequence[str], options: dict[str, Any]) -> list[str]:
        if options.get("do_sample") or options.get("num_beams", 1) > 1:
            asked = "samples" if options.get("do_sample") else "searches beams"
            raise InputError("lm-eval", "", f"a task {asked}, and files write greedily", "choose another task")
        stops = [s for s in handle_stop_sequences(options.get("until"), self.tokenizer.decode(self.eot_token_id)) if s]
        tail = TOKENS_OF_A_CHARACTER * max(map(len, stops), default=0)

        def done(tokens: list[int]) -> bool:
            if tokens[-1] == self.eot_token_id:
                return True
            text = self.tokenizer.decode(tokens[-tail:])
            return any(stop in text for stop in stops)

        prompts = [self.tok_encode(context) or [self.prefix_token_id] for context in contexts]
        written = self.writer.write(prompts, options["max_gen_toks"], done)
        texts = (self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in written)
        return [postprocess_generated_text(text, stops, None) for text in texts]
