"""Opening ONNX files for inference, in a way whose time can be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from backends.onnx import integer_sums
from backends.onnx.cache_names import PAST
from backends.onnx.options import TYPES, providers, session_options
from knowledge.faults import first_line
from knowledge.values import InputError, RunFailed

Batch = dict[str, np.ndarray]
Predict = Callable[[Batch], np.ndarray]


def open_session(
    path: Path,
    threads: int,
    *,
    cuda: bool = False,
    optimized_path: Path | None = None,
    given: bool = False,
    exact_integers: bool | None = None,
) -> ort.InferenceSession:
    """Load an ONNX file with threads that sleep while they wait, so that two sessions do not slow each other down.

    `cuda` asks for the GPU where this machine has one. `optimized_path` keeps the graph as the runtime optimized it.
    `exact_integers` asks for 8-bit sums that cannot overflow, by itself where the processor's do and the file allows
    it. Where the file is broken or uses operators that the runtime does not have, raises RunFailed; InputError for one
    that the user has `given`.
    """
    if given and not Path(path).is_file():
        raise InputError("model", path, "no such file", "give the path of an .onnx file")
    options = session_options(threads)
    if integer_sums.by_option(Path(path)) if exact_integers is None else exact_integers:
        options.add_session_config_entry(integer_sums.OPTION, "1")
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    try:
        return ort.InferenceSession(str(path), options, providers=providers(cuda))
    except Exception as error:  # the runtime's exception classes share no public base
        reason = first_line(error)[:200]
        if given:
            raise InputError("model", path, f"ONNX Runtime cannot load it ({reason})", "export it again") from error
        raise RunFailed(f"{path}: a file of our own making that ONNX Runtime cannot load ({reason})") from error


def session_inputs(session: ort.InferenceSession) -> list[str]:
    """Names of the inputs that data give: all but those of a key-value cache."""
    return [spec.name for spec in session.get_inputs() if not spec.name.startswith(PAST)]


def completed(feed: Mapping[str, np.ndarray], session: ort.InferenceSession) -> Batch:
    """What a session reads of a feed (which may hold more, as labels), with an empty cache where the feed has none.

    Raises InputError where another input is missing.
    """
    specs = session.get_inputs()
    names = [spec.name for spec in specs if not spec.name.startswith(PAST)]
    if missing := [name for name in names if name not in feed]:
        raise InputError("data", missing[0], "the model needs this input", f"give {', '.join(names)}")
    batch = len(feed[names[0]])
    return {spec.name: feed[spec.name] if spec.name in feed else _empty(spec, batch) for spec in specs}


def _empty(spec: ort.NodeArg, batch: int) -> np.ndarray:
    """Keys or values of no position: [batch, heads, 0, width]."""
    return np.zeros([batch, *(size if isinstance(size, int) else 0 for size in spec.shape[1:])], TYPES[spec.type])


def session_predictor(session: ort.InferenceSession) -> Predict:
    """The first output for a batch that holds every input by name (it may hold more, as labels).

    Raises InputError where an input is missing, RunFailed where the graph cannot compute.
    """
    output = session.get_outputs()[0].name

    def predict(batch: Batch) -> np.ndarray:
        feed = completed(batch, session)
        try:
            return np.asarray(session.run([output], feed)[0])
        except Exception as error:  # as above
            shapes = ", ".join(f"{name} {list(feed[name].shape)}" for name in session_inputs(session))
            reason = first_line(error)[:200]
            raise RunFailed(f"ONNX Runtime failed on {shapes}: {reason}") from error

    return predict
