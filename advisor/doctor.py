"""What this machine and this installation can do, and what they cannot, with the remedy."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.version import Version

from advisor.readiness import Readiness, readiness
from backends import processor
from knowledge.places import cache_folder
from knowledge.values import Value

DOCTOR_SCHEMA = "advisor.doctor/1"
DISTRIBUTION = "compression-advisor"
CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
LOW_DISK_BYTES = 2 * 10**9
# extra -> what it is for
USES = {
    "images": "folders of images as data",
    "datasets": "data sets by name",
    "minilm": "zoo:minilm",
    "lm-eval": "the lm-eval harness",
    "compressed-tensors": "loading packed folders with transformers",
}
# cpuinfo flag -> what it is good for
CPU_FLAGS = {
    "avx2": "wide float arithmetic",
    "avx512f": "wider float arithmetic",
    "avx_vnni": "INT8 dot products",
    "avx512_vnni": "INT8 dot products",
    "amx_int8": "INT8 matrix tiles",
    "asimddp": "INT8 dot products (Arm)",
    "i8mm": "INT8 matrix products (Arm)",
    "avx512_fp16": "half-precision arithmetic",
    "fphp": "half-precision arithmetic (Arm)",
}


class Check(Value):
    """One thing looked at. `missing` stops work, `note` is worth knowing."""

    name: str
    status: Literal["ok", "note", "missing"]
    text: str
    remedy: str = ""


class Diagnosis(Value):
    checks: tuple[Check, ...]
    techniques: tuple[Readiness, ...]

    @property
    def exit_code(self) -> int:
        """1 where something is missing; a technique that nobody can run yet is not."""
        broken = any(not t.runs and not t.planned_only for t in self.techniques)
        return int(broken or any(c.status == "missing" for c in self.checks))


def to_json(diagnosis: Diagnosis) -> dict[str, Any]:
    return {"schema": DOCTOR_SCHEMA, **diagnosis.model_dump(mode="json")}


def diagnose_machine() -> Diagnosis:
    """Look at Python, libraries, processor, accelerator, disk and cache. Writes one probe file into the cache."""
    checks = (_python(), *_libraries(), *_extras(), _processor(), _accelerator(), *_cache())
    return Diagnosis(checks=checks, techniques=tuple(readiness()))


def _python() -> Check:
    good = sys.version_info >= (3, 11)
    return Check(
        name="python",
        status="ok" if good else "missing",
        text=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        remedy="" if good else "install Python 3.11 or later",
    )


def _libraries() -> Iterator[Check]:
    """Each required library: installed, recent enough, and whether it is the version that was tested."""
    pins = tested_versions()
    needed = requirements()
    if not needed:
        yield Check(name=DISTRIBUTION, status="note", text="not installed: versions unknown", remedy="pip install -e .")
    for requirement in needed:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Check(name=requirement.name, status="missing", text="not installed", remedy=_install(requirement))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            text = f"{version}, needs {requirement.specifier}"
            yield Check(name=requirement.name, status="missing", text=text, remedy=_install(requirement))
        elif (pin := pins.get(_key(requirement.name))) and Version(version).public != Version(pin).public:
            yield Check(name=requirement.name, status="note", text=f"{version}; {pin} is the version that was tested")
        else:
            yield Check(name=requirement.name, status="ok", text=version)


def _extras() -> Iterator[Check]:
    """Each library that only some uses need: which of them are there, and what they would bring."""
    for extra, requirement in optional():
        try:
            yield Check(name=requirement.name, status="ok", text=f"{metadata.version(requirement.name)}, for {extra}")
        except metadata.PackageNotFoundError:
            remedy = f"pip install '{DISTRIBUTION}[{extra}]'"
            text = f"not installed: {USES.get(extra, extra)} cannot be used"
            yield Check(name=requirement.name, status="note", text=text, remedy=remedy)


def optional() -> list[tuple[str, Requirement]]:
    """(extra, what it needs) of the installed distribution, tests aside."""
    try:
        described = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return []
    extras = [name for name in described.get_all("Provides-Extra") or () if name != "test"]
    needs = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or ()]
    always = requirements()
    return [
        (extra, need)
        for extra in extras
        for need in needs
        if need not in always and need.marker is not None and need.marker.evaluate({"extra": extra})
    ]


def requirements() -> list[Requirement]:
    """What the installed distribution needs without extras; empty when run from a folder that was never installed."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    found = [Requirement(line) for line in lines]
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]


def tested_versions() -> dict[str, str]:
    """The pins of constraints.txt, where the source tree is at hand."""
    if not CONSTRAINTS.exists():
        return {}
    lines = (line.split("#")[0].strip() for line in CONSTRAINTS.read_text().splitlines())
    pairs = (line.split("==") for line in lines if "==" in line)
    return {_key(name): version for name, version in pairs}


def _key(name: str) -> str:
    return name.lower().replace("_", "-")


def _install(requirement: Requirement) -> str:
    return f"pip install '{requirement.name}{requirement.specifier}'"


def _processor() -> Check:
    flags = processor.cpu_flags()
    known = [f"{flag} ({use})" for flag, use in CPU_FLAGS.items() if flag in flags]
    text = f"{os.cpu_count()} logical processors; {', '.join(known) or 'no known vector extensions'}"
    if processor.has_int8_dot():
        return Check(name="processor", status="ok", text=text)
    remedy = "INT8 files will be smaller here but hardly faster: measure speed on the target"
    return Check(name="processor", status="note", text=f"{text}; no INT8 dot product", remedy=remedy)


def _accelerator() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check(name="cuda", status="note", text="unknown without torch")
    import torch

    if not torch.cuda.is_available():
        text = "no CUDA device; training and measuring run on the processor"
        return Check(name="cuda", status="note", text=text)
    device = torch.cuda.get_device_properties(0)
    return Check(name="cuda", status="ok", text=f"{device.name}, {device.total_memory / 1e9:.0f} GB")


def _cache() -> Iterator[Check]:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        text = f"{folder} cannot be written ({error.strerror})"
        yield Check(name="cache", status="missing", text=text, remedy="set ADVISOR_CACHE to a folder of yours")
        return
    used = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    yield Check(name="cache", status="ok", text=f"{folder}, {used / 1e6:.0f} MB used")
    free = shutil.disk_usage(folder).free
    low = free < LOW_DISK_BYTES
    remedy = "free some space, or set ADVISOR_CACHE to another disk" if low else ""
    yield Check(
        name="disk", status="note" if low else "ok", text=f"{free / 1e9:.1f} GB free for the cache", remedy=remedy
    )
