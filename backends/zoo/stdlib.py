"""Language models on the standard library's sources: the corpus, the tokenizer, the shapes, the token windows.

    path of a source file ──sha256──► train 88 % | calibration 3 % | search 4 % | verification 5 %
    sources of a part ──BPE──► one token stream, files separated by <eos> ──► windows [n, 128]

The text is read from the running Python, so perplexities differ a little between Python versions.
"""

from __future__ import annotations

import hashlib
import sysconfig
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from backends.data import Split

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PretrainedConfig

WEIGHTS = Path(__file__).parent / "weights"
WINDOW = 128
VOCABULARY = 1024
PAD, EOS = "<pad>", "<eos>"  # ids 0 and 1

Part = Literal["train", "calibration", "search", "verification"]
_SHARES: dict[Part, int] = {"train": 88, "calibration": 3, "search": 4, "verification": 5}  # percent of the files
_CAP_BYTES = 9_000_000  # of the whole corpus
# what is no library code that people write: tests, editors, generated tables, vendored wheels
_LEFT_OUT = "test tests idlelib idle_test site-packages turtledemo encodings pydoc_data lib2to3 ensurepip lib-dynload"

_LLAMA = {"architecture": "llama", "vocab_size": VOCABULARY, "max_position_embeddings": 256, "rms_norm_eps": 1e-5}
SHAPES: dict[str, dict[str, Any]] = {
    "stdlib-lm": {
        **_LLAMA,
        "hidden_size": 192,
        "intermediate_size": 320,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "tie_word_embeddings": False,
    },
    "stdlib-lm-large": {
        **_LLAMA,
        "hidden_size": 256,
        "intermediate_size": 640,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "tie_word_embeddings": True,
    },
    "stdlib-gpt2": {
        "architecture": "gpt2",
        "vocab_size": VOCABULARY,
        "n_positions": 256,
        "n_embd": 192,
        "n_layer": 4,
        "n_head": 6,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "stdlib-moe": {
        "architecture": "mixtral",
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": None,
        "tie_word_embeddings": False,
    },
}


def config(name: str) -> PretrainedConfig:
    """The transformers configuration of a zoo language model; raises KeyError."""
    import transformers

    shape = dict(SHAPES[name])
    classes = {"llama": "LlamaConfig", "gpt2": "GPT2Config", "mixtral": "MixtralConfig"}
    build = getattr(transformers, classes[shape.pop("architecture")])
    built: PretrainedConfig = build(bos_token_id=1, eos_token_id=1, pad_token_id=0, use_cache=False, **shape)
    return built


def _order(path: str) -> int:
    """A number that scatters paths evenly, the same on every machine."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big")


@cache
def source_files() -> dict[Part, tuple[Path, ...]]:
    """The corpus: source files of the running Python's library per part, in an order that paths alone decide."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = {p.relative_to(root).as_posix(): p for p in root.rglob("*.py")}
    left_out = set(_LEFT_OUT.split())
    chosen = sorted((name for name in paths if not left_out & set(name.split("/"))), key=lambda n: (_order(n), n))
    parts: dict[Part, list[Path]] = {part: [] for part in get_args(Part)}
    total = 0
    for name in chosen:
        total += paths[name].stat().st_size
        if total > _CAP_BYTES:
            break
        rest = _order("part " + name) % 100
        for part, share in _SHARES.items():
            if rest < share:
                parts[part].append(paths[name])
                break
            rest -= share
    return {part: tuple(files) for part, files in parts.items()}


def train_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer of VOCABULARY tokens, trained on the corpus's training part."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (path.read_text("utf-8", errors="replace") for path in source_files()["train"])
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tokens(tokenizer: Tokenizer, part: Part, at_least: int | None = None) -> NDArray[np.int64]:
    """Token stream of a part, files separated by <eos>; stops after the file that reaches `at_least` tokens."""
    end = np.array([tokenizer.token_to_id(EOS)])
    stream: list[NDArray[np.int64]] = []
    count = 0
    for path in source_files()[part]:
        found = np.array(tokenizer.encode(path.read_text("utf-8", errors="replace")).ids, dtype=np.int64)
        stream += [found, end]
        count += len(found) + 1
        if at_least is not None and count >= at_least:
            break
    return np.concatenate(stream)


def windows(tokenizer: Tokenizer, part: Part, count: int, seed: int) -> NDArray[np.int64]:
    """`count` windows [count, WINDOW] that do not overlap, drawn by seed from the part's first files."""
    return _drawn(tokenizer, part, count, seed)[0]


def _drawn(tokenizer: Tokenizer, part: Part, count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The windows, and where each stands among all of the text."""
    stream = tokens(tokenizer, part, at_least=5 * count * WINDOW // 4)
    cut = stream[: len(stream) // WINDOW * WINDOW].reshape(-1, WINDOW)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(cut))[:count])
    return cut[chosen], chosen


@cache
def token_windows(part: Part, count: int, seed: int) -> Split:
    """Token windows [count, WINDOW] for the zoo's language models, which share one tokenizer. Kept in memory."""
    from tokenizers import Tokenizer

    ids, places = _drawn(Tokenizer.from_file(str(WEIGHTS / "stdlib-lm" / "tokenizer.json")), part, count, seed)
    return Split({"input_ids": ids, "attention_mask": np.ones_like(ids)}, ids, places)
