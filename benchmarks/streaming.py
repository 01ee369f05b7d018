"""Memory and time of compressing a model block by block, against its depth: random weights in the shapes of a Llama.

python -m benchmarks.streaming [--json] [--blocks 8,16,32] [--setting sparsegpt-50] [--tokens 4096] [--format dense]

Each depth is compressed in a fresh process, from shards in a temporary folder to shards in another. Memory is the peak
of that process's anonymous resident memory, its libraries included (Linux: RssAnon). Growth from the first depth to
the last is printed on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backends.oneshot.integers import Asked
from backends.oneshot.shards import stored, write_shard
from benchmarks.one_shot import method_of
from benchmarks.show import show
from knowledge.files import write_text
from knowledge.shards import INDEX

HIDDEN, INNER, HEADS, VOCABULARY = 1024, 2816, 16, 8000
LENGTH = 128  # tokens of a window
MOST_TOKENS = 8192
SAMPLED_EVERY = 0.005  # seconds
Row = dict[str, Any]


def block_shapes(number: int) -> dict[str, tuple[int, ...]]:
    """Weights of a block by name."""
    attention = {f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"}
    inner = {"mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER)}
    norms = {name: (HIDDEN,) for name in ("input_layernorm", "post_attention_layernorm")}
    return {f"model.layers.{number}.{name}.weight": shape for name, shape in (attention | inner | norms).items()}


def write_model(folder: Path, blocks: int, dtype: str) -> int:
    """Write a Llama of random weights, a shard per block and one for the rest; its weights' bytes."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=blocks,
        num_attention_heads=HEADS,
        max_position_embeddings=2048,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    outside = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    outside["lm_head.weight"] = (VOCABULARY, HIDDEN)
    places: dict[str, str] = {}
    total = 0
    for number, shapes in enumerate((*(block_shapes(n) for n in range(blocks)), outside), start=1):
        name = f"model-{number:05}-of-{blocks + 1:05}.safetensors"
        held = {one: stored(_random(shape, generator), dtype) for one, shape in shapes.items()}
        write_shard(folder / name, held)
        places |= dict.fromkeys(held, name)
        total += sum(one.data.nbytes for one in held.values())
    write_text(folder / INDEX, json.dumps({"metadata": {"total_size": total}, "weight_map": places}))
    return total


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * shape[-1] ** -0.5


def compress_here(source: Path, out: Path, setting: str, form: Asked, tokens: int) -> float:
    """Seconds that compressing takes in this process, libraries loaded."""
    from transformers import LlamaForCausalLM  # noqa: F401  # loading it is no part of the work

    from backends.oneshot.stream import compress_folder

    ids = torch.randint(VOCABULARY, (tokens // LENGTH, LENGTH), generator=torch.Generator().manual_seed(1))
    begun = time.perf_counter()
    compress_folder(source, out, ids, lambda readers: method_of(setting, readers), setting, form=form)
    return time.perf_counter() - begun


def measured(source: Path, out: Path, setting: str, form: Asked, tokens: int) -> Row:
    """Seconds, and the peak of anonymous resident memory, of a process that compresses a folder."""
    command = [sys.executable, "-m", "benchmarks.streaming", "--setting", setting, "--tokens", str(tokens)]
    command += ["--format", form, "--one", str(source), str(out)]
    waiting = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ  # threads that spin give false times on a shared machine
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=waiting) as child:
        peak = max(_anonymous(child), default=0)
        assert child.stdout is not None
        said = child.stdout.read()
    if child.returncode:
        raise SystemExit(f"the process that compresses ended with {child.returncode}")
    return {"seconds": json.loads(said), "peak_memory_bytes": peak}


def _anonymous(child: subprocess.Popen[str]) -> Iterator[int]:
    """Bytes of anonymous resident memory of a process, over and over until it ends."""
    status = Path(f"/proc/{child.pid}/status")
    while child.poll() is None:
        try:
            lines = status.read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            return
        yield from (1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
        time.sleep(SAMPLED_EVERY)


def rows(blocks_each: Sequence[int], setting: str, form: Asked, tokens: int, dtype: str) -> Iterator[Row]:
    """One row per depth."""
    for blocks in blocks_each:
        with tempfile.TemporaryDirectory() as folder:
            source, out = Path(folder) / "model", Path(folder) / "out"
            total = write_model(source, blocks, dtype)
            print(f"{blocks} blocks, {total / 1e6:,.0f} MB of weights", file=sys.stderr)
            yield {"blocks": blocks} | measured(source, out, setting, form, tokens)
            made = sum(path.stat().st_size for path in out.glob("*.safetensors"))
            print(f"{made / 1e6:,.0f} MB after {setting}, {form}", file=sys.stderr)


def depths(text: str) -> list[int]:
    """
    >>> depths("8,16")
    [8, 16]
    """
    return [int(number) for number in text.split(",")]


def main() -> None:
    """Parse, measure, show."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--blocks", type=depths, default="8,16,32", help="depths to measure (8,16,32)")
    parser.add_argument("--setting", default="sparsegpt-50", help="method, as in benchmarks.one_shot (sparsegpt-50)")
    parser.add_argument("--tokens", type=int, default=4096, help=f"for calibration, at most {MOST_TOKENS:,} (4096)")
    parser.add_argument("--format", default="dense", choices=["dense", "packed"], help="of the result (dense)")
    parser.add_argument("--dtype", default="F32", choices=["F32", "BF16", "F16"], help="numbers in the files (F32)")
    parser.add_argument("--one", type=Path, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    method_of(given.setting, {})  # understood before anything is written
    if not LENGTH <= given.tokens <= MOST_TOKENS:
        parser.error(f"--tokens: {LENGTH} to {MOST_TOKENS:,}")
    if given.one:
        print(json.dumps(compress_here(*given.one, given.setting, given.format, given.tokens)))
        return
    found = list(rows(given.blocks, given.setting, given.format, given.tokens, given.dtype))
    show(found)
    first, last = found[0], found[-1]
    grown = last["peak_memory_bytes"] / first["peak_memory_bytes"] - 1
    slower = (last["seconds"] / last["blocks"]) / (first["seconds"] / first["blocks"]) - 1
    reach = f"from {first['blocks']} to {last['blocks']} blocks"
    print(f"memory {grown:+.1%}, seconds per block {slower:+.1%} {reach}", file=sys.stderr)


if __name__ == "__main__":
    main()
