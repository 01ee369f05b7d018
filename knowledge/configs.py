"""What a transformers configuration says, as a mapping or as the library's object, and how its weights are called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from knowledge.values import InputError

# their positions are counted from the padding token's id on
OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "data2vec-text", "longformer"}
# names of what stands on top of the model itself
HEADS = (
    "cls.",
    "lm_head.",
    "classifier.",
    "score.",
    "qa_outputs.",
    "vocab_",
    "discriminator_predictions.",
    "generator_",
)
NO_PARAMETER = re.compile(  # names of what files hold besides weights
    r"(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|num_batches_tracked|cos_cached|sin_cached)$"
)
QUANTIZED = "give the model that it was made from, or what `advisor unpack` makes of what `advisor compress` packed"
OF_THESE_WEIGHTS = "give the configuration that the weights were saved with"
COUNTS = {  # what cannot be less than one
    *("hidden_size", "n_embd", "d_model", "intermediate_size", "vocab_size", "max_position_embeddings"),
    *("num_hidden_layers", "n_layer", "n_layers", "num_attention_heads", "n_head", "n_heads", "num_key_value_heads"),
}


def check_counts(config: Mapping[str, Any], source: object) -> None:
    """Raise InputError for a size below one, which the library would take without a word, and for one in letters."""
    for name, value in config.items():
        counted = isinstance(value, int) and not isinstance(value, bool)
        if name in COUNTS and (isinstance(value, str) or (counted and value < 1)):
            raise InputError("model", source, f"config.json says {name} {value}", OF_THESE_WEIGHTS)


def shape_text(shape: Iterable[int]) -> str:
    """
    >>> shape_text((100, 32))
    '100×32'
    """
    return "×".join(map(str, shape))


def vocabulary_of(config: Any) -> int:
    """Entries of the token embedding; 0 for a model of images, whose vocabulary, if any, is one of patches."""
    return 0 if _field(config, "image_size") else int(_field(config, "vocab_size") or 0)


def longest_of(config: Any) -> int:
    """Tokens that a sample may have at most; 0 where nothing limits them, or where the model reads none.

    >>> longest_of({"vocab_size": 9, "max_position_embeddings": 514, "model_type": "roberta", "pad_token_id": 1})
    512
    """
    if not vocabulary_of(config):
        return 0
    rows = next((n for name in ("max_position_embeddings", "n_positions") if (n := _field(config, name))), 0)
    padding = _field(config, "pad_token_id")
    if rows and _field(config, "model_type") in OFFSET_POSITIONS and isinstance(padding, int):
        return int(rows) - padding - 1
    return max(int(rows), 0)  # XLNet says −1


def _field(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
