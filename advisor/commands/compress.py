"""`advisor compress` and `advisor unpack`: parse, call one function, show."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from advisor.show import console, options

FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("model", type=FOLDER)
@click.option("--technique", required=True, metavar="ID", help="wanda, sparsegpt, gptq or awq.")
@click.option("--set", "settings", multiple=True, metavar="PARAM=X", help="A parameter of it; may repeat.")
@click.option(
    "--calibration", required=True, metavar="FILE", help="FILE.safetensors:KEY, an .npz with input_ids, or a text."
)
@click.option(
    "--seq-len", type=click.IntRange(2), help="Window of a text, in tokens. [128, or as many as the model reads]"
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["packed", "dense"]),
    help="Weights in few bits, or without their zeros; or as plain numbers. [packed after gptq and awq, else dense]",
)
@click.option("-o", "--out", required=True, type=FOLDER, help="Folder to write, or to go on in.")
@options.as_json
def compress(
    model: Path,
    technique: str,
    settings: tuple[str, ...],
    calibration: str,
    seq_len: int | None,
    form: Literal["packed", "dense"] | None,
    out: Path,
    as_json: bool,
) -> None:
    """Compress the language model in folder MODEL, one block in memory at a time.

    For models that do not fit into memory: weights are read from their safetensors files and written to others, block
    by block, and a run that was cut off goes on at the block. The result is a model folder again; no ONNX file is made
    here.

    Rounded weights are packed in few bits where the format compressed-tensors holds the model: transformers and vLLM
    load it. Pruned weights stay plain numbers; packed, they are stored without their zeros. `advisor unpack` makes
    plain weights of either, as `advisor run` wants them.

    \b
    Example:
      advisor compress llama-7b --technique gptq --set bits=4 --calibration text.txt --out llama-4-bits
      advisor compress llama-7b --technique sparsegpt --set pattern="'2:4'" --calibration text.txt --out llama-2-4
    """
    from advisor.compress import compress as compress_model
    from advisor.show.compressed import show_compressed

    result = compress_model(model, technique, settings, calibration, out, seq_len, console.progress, form or "auto")
    console.answer(as_json, result, lambda: show_compressed(result))


@click.command()
@click.argument("folder", type=FOLDER)
@options.out
@options.as_json
def unpack(folder: Path, out: Path, as_json: bool) -> None:
    """Write the model that `advisor compress` packed into FOLDER with plain weights.

    One shard in memory at a time. Weights without zeros come back bit for bit; those in few bits as floats.

    \b
    Example:
      advisor unpack llama-4-bits --out llama-plain
    """
    from advisor.compress import unpack as unpack_model
    from advisor.show.compressed import show_unpacked

    result = unpack_model(folder, out)
    console.answer(as_json, result, lambda: show_unpacked(result))
