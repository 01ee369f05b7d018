"""Peak memory of a fresh process that loads one file and runs it once.

python -m backends.onnx.memory MODEL INPUTS.npz THREADS EXACT      prints the bytes; EXACT: 1 for exact integer sums
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from backends.onnx.integer_sums import by_option
from backends.onnx.session import Batch, completed, open_session
from knowledge.values import RunFailed

ROOT = Path(__file__).resolve().parents[2]
STATUS = Path("/proc/self/status")
TIMEOUT_SECONDS = 300


def peak_memory_bytes(path: Path, feed: Batch, threads: int) -> int:
    """Anonymous memory at its peak, the runtime's own included; libraries and memory-mapped files are not counted.

    Raises RunFailed where the process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        np.savez(inputs, **feed)  # type: ignore[arg-type]
        asked = str(Path(path).resolve()), str(inputs), str(threads), str(int(by_option(path)))
        command = [sys.executable, "-m", "backends.onnx.memory", *asked]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RunFailed(f"{path}: measuring its memory failed: {lines[-1]}")
    return int(done.stdout)


def anonymous_peak_bytes() -> int:
    """Resident peak of this process without file-backed pages; the plain peak where the system does not tell."""
    if not STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    kilobytes = {name: int(found[name].split()[0]) for name in ("VmHWM", "RssFile", "RssShmem") if name in found}
    return 1024 * (kilobytes["VmHWM"] - kilobytes.get("RssFile", 0) - kilobytes.get("RssShmem", 0))


def main(path: str, inputs: str, threads: str, exact_integers: str) -> None:
    """Load, run once, print the peak."""
    session = open_session(Path(path), int(threads), exact_integers=bool(int(exact_integers)))
    with np.load(inputs) as feed:
        session.run([session.get_outputs()[0].name], completed(feed, session))
    sys.stdout.write(f"{anonymous_peak_bytes()}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
