"""What the proof on a file says: `verification.json`."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from knowledge.values import Budget, Drop, Limits, Measurement, Quality, Ratio, Value, Workload

# by option: where the runtime has exact kernels; of opset 21 on, it has none for products of two quantized matrices
IntegerSums = Literal["exact", "exact by option", "may overflow"]


class Parity(Value):
    """How far two files' outputs are apart on the same inputs."""

    max_abs_diff: float
    cosine: float  # mean over samples
    top1_agreement: float | None  # of the last axis; None where outputs are no scores


class Environment(Value):
    """Where it was measured."""

    versions: dict[str, str]
    cpu: str
    vnni: bool  # 8-bit dot-product instructions
    integer_sums: IntegerSums = "exact"  # of 8-bit products in the compressed file
    threads: int
    provider: str


class Explanation(Value):
    """Why a gain that theory promises is not in the file."""

    rule: str
    text: str


class Miss(Value):
    """A limit of the budget that the file does not meet."""

    limit: Limits
    allowed: float
    measured: float
    text: str


class DecodingSpeed(Value):
    """How fast one file writes: medians."""

    time_to_first_token_ms_p50: float  # reading the prompts, scores at each of their positions included
    tokens_per_second_p50: float  # of all sequences of the batch together


class Decoding(Value):
    """Both files writing greedily with their key-value caches. Ratios: how many times faster the compressed one is."""

    prompt_tokens: int
    batch: int
    new_tokens: int
    baseline: DecodingSpeed
    compressed: DecodingSpeed
    first_token_speedup: Ratio
    decoding_speedup: Ratio


class Protocol(Value):
    """What perplexity was taken over. `stride` tokens of a window were not scored in the one before it."""

    window: int  # tokens
    stride: int
    tokens: int  # scored; the first one of a text, and of a window that shares none with another, is not
    windows: int


class TaskScore(Value):
    """One metric of one lm-eval task, of both files on the same documents. Errors are standard errors.

    `difference` is compressed - baseline, with the error of the differences of single documents: much smaller than
    either file's own, where both mostly answer alike. None where the metric is no mean over documents.
    """

    task: str
    metric: str
    filter: str  # what of an answer counts; "none" is all of it
    higher_is_better: bool | None
    shots: int
    documents: int
    baseline: float | None  # None where the metric is not finite
    compressed: float | None
    baseline_stderr: float | None
    stderr: float | None  # of the compressed file's
    difference: float | None
    difference_stderr: float | None


class PackedWeights(Value):
    """The exported torch model's weights without their zeros, in a file of their own that loads back bit for bit."""

    file: str  # from the folder of the ONNX file
    size_bytes: int
    download_bytes: int  # after entropy coding
    plain_bytes: int  # of the same tensors, zeros included


class Verdict(Value):
    within_budget: bool
    misses: tuple[Miss, ...] = ()


class Verification(Value):
    """Baseline and compressed file, measured on this machine. Ratios are baseline ÷ compressed: larger is better."""

    schema_version: Literal["advisor.verification/1"] = Field("advisor.verification/1", alias="schema")
    workload: Workload
    baseline: Measurement
    compressed: Measurement
    compression: float
    speedup: Ratio
    efficiency: float  # quality ÷ size × speed, relative to the baseline
    parity: Parity
    environment: Environment
    verdict: Verdict
    protocol: Protocol | None = None  # of perplexity
    explanations: tuple[Explanation, ...] = ()
    decoding: tuple[Decoding, ...] = ()  # of causal models, one entry for each prompt length and batch size
    packed: PackedWeights | None = None  # beside the file, where weights are zero
    lm_eval: tuple[TaskScore, ...] = ()

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


def judge(budget: Budget, baseline: Measurement, compressed: Measurement, speedup: Ratio) -> Verdict:
    """Every limit of the budget that the compressed file misses, in words with the numbers."""
    checks = [
        (Limits.SIZE, budget.max_size_bytes, compressed.size_bytes, "bytes"),
        (Limits.LATENCY, budget.max_latency_ms, compressed.latency_ms.p50, "ms"),
        (Limits.MEMORY, budget.max_memory_bytes, compressed.peak_memory_bytes, "bytes"),
    ]
    misses = [_above(limit, most, got, unit) for limit, most, got, unit in checks if most is not None and got > most]
    if budget.min_speedup is not None and speedup.value < budget.min_speedup:
        text = f"{speedup.value:.2f} times as fast, {budget.min_speedup:g} wanted"
        misses.append(Miss(limit=Limits.SPEEDUP, allowed=budget.min_speedup, measured=speedup.value, text=text))
    lost = loss(baseline.quality, compressed.quality, budget.max_drop)
    if lost > budget.max_drop.amount:
        text = f"{compressed.quality.metric} loses {lost:.2f} {budget.max_drop.unit}, {budget.max_drop} allowed"
        misses.insert(0, Miss(limit=Limits.QUALITY, allowed=budget.max_drop.amount, measured=lost, text=text))
    return Verdict(within_budget=not misses, misses=tuple(misses))


def loss(baseline: Quality, compressed: Quality, drop: Drop) -> float:
    """Loss of quality in the budget's unit; negative is a gain."""
    return compressed.drop_from(baseline, drop.unit)


def efficiency(baseline: Measurement, compressed: Measurement, speedup: Ratio) -> float:
    """Quality ÷ size × speed relative to the baseline; 1 is the baseline itself.

    Quality counts as a ratio: compressed ÷ baseline, or the inverse where lower is better.
    """
    before, after = baseline.quality.value, compressed.quality.value
    if not compressed.quality.higher_is_better:
        before, after = after, before
    kept = after / before if before > 0 else float(after >= before)
    return kept * baseline.size_bytes / compressed.size_bytes * speedup.value


def _above(limit: Limits, allowed: float, measured: float, unit: str) -> Miss:
    over = 100 * (measured / allowed - 1)
    text = f"{limit.value}: {measured:,.6g} {unit}, {over:.0f} % above the {allowed:,.6g} allowed"
    return Miss(limit=limit, allowed=allowed, measured=measured, text=text)
