"""Why a gain that theory promises is not in the file: one sentence per rule that applies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from backends.onnx.facts import Facts
from backends.onnx.integer_sums import OPTION
from backends.onnx.verification import Environment, Explanation, PackedWeights
from knowledge.values import Measurement, Ratio, Workload

ZERO_SHARE = 0.15  # dense weights have next to none
EMBEDDING_SHARE = 0.4
FLOAT_SHARE = 0.1
OVERHEAD_SHARE = 0.1
OVERHEAD_PER_NODE_MS = 0.008  # below, the time goes into starting kernels
SMALL_SPEEDUP = 1.3
EXPECTED_INT8_SPEEDUP = 1.5
TOKENS_BOUND_BY_MEMORY = 4  # positions per weight below which reading weights outlasts using them


@dataclass(frozen=True)
class Case:
    """Everything a rule may look at."""

    baseline: Measurement
    compressed: Measurement
    before: Facts
    after: Facts
    speedup: Ratio
    workload: Workload
    environment: Environment
    packed: PackedWeights | None = None

    @property
    def compression(self) -> float:
        return self.baseline.size_bytes / self.compressed.size_bytes

    @property
    def slow(self) -> bool:
        """Whether the speed-up is small, or less than half of what the size gained."""
        return self.speedup.value < SMALL_SPEEDUP or self.speedup.value < 0.5 * self.compression


def explanations(case: Case) -> tuple[Explanation, ...]:
    """Every rule that applies, the most telling first."""
    return tuple(Explanation(rule=rule.__name__.replace("_", "-"), text=text) for rule in RULES for text in rule(case))


def zeros_stored_densely(case: Case) -> Iterator[str]:
    share, packed = case.after.zero_share, case.packed
    told = []
    if share >= ZERO_SHARE and share > case.before.zero_share + 0.05:
        told.append(
            f"{share:.0%} of the weights are zero, but ONNX stores zeros like any number and ONNX Runtime multiplies "
            "by them: unstructured zeros change neither size nor speed. Removing whole channels, heads or blocks does."
        )
    if packed is not None:
        told.append(
            f"Packed without zeros, the torch model's weights take {packed.size_bytes / 1e6:.3g} MB ({packed.file}) "
            f"and load back bit for bit; plain safetensors take {packed.plain_bytes / 1e6:.3g} MB, and the ONNX file "
            f"{case.compressed.size_bytes / 1e6:.3g} MB."
        )
    if told:
        yield " ".join(told)


def embedding_dominates(case: Case) -> Iterator[str]:
    share = case.after.embedding_bytes / max(case.after.weight_bytes, 1)
    if share >= EMBEDDING_SHARE and case.compression < 3.5:
        yield (
            f"Embeddings are {share:.0%} of the remaining weights ({case.after.embedding_bytes / 1e6:.1f} MB): "
            "what was done to the other layers moves the file's size only so far."
        )


def graph_outweighs_weights(case: Case) -> Iterator[str]:
    rest = case.after.file_bytes - case.after.weight_bytes
    if rest >= OVERHEAD_SHARE * case.after.file_bytes:
        share = rest / case.after.file_bytes
        yield f"{rest / 1e3:.0f} kB of the file ({share:.0%}) describe the graph and hold no weights."


def no_vnni(case: Case) -> Iterator[str]:
    if case.after.quantized and not case.environment.vnni and case.speedup.value < EXPECTED_INT8_SPEEDUP:
        yield (
            "This CPU has no 8-bit dot-product instructions (VNNI): integer kernels run hardly faster than float ones "
            "here, and may on the target."
        )


def integer_sums_overflow(case: Case) -> Iterator[str]:
    sums = case.environment.integer_sums
    if case.after.integer_products and sums != "exact":
        measured = (
            f"The file was measured with {OPTION} = 1, which takes exact ones where the runtime has them: set it "
            "wherever the file is opened on an x86 CPU without VNNI, or quality is lost."
            if sums == "exact by option"
            else f"{OPTION} = 1, which takes exact ones, does not work for this file: quality may be better on "
            "a CPU with VNNI."
        )
        yield f"This CPU's fast integer kernels add products of 8 bits in 16, which overflow. {measured}"


def half_precision_on_cpu(case: Case) -> Iterator[str]:
    if case.after.half_bytes > case.after.weight_bytes / 2 and case.speedup.value < SMALL_SPEEDUP:
        yield (
            "ONNX Runtime computes half-precision weights in single precision on this CPU: the file halves, the time "
            "does not. A GPU or an accelerator with half-precision arithmetic is needed for speed."
        )


def float_products_left(case: Case) -> Iterator[str]:
    share = case.after.float_product_bytes / max(case.after.weight_bytes, 1)
    if case.after.quantized and share >= FLOAT_SHARE:
        yield (
            f"Matrix products with {case.after.float_product_bytes / 1e6:.1f} MB of weights ({share:.0%}) are still in "
            "32-bit floats: they bound both size and speed."
        )


def unfused_nodes(case: Case) -> Iterator[str]:
    if case.after.unfused:
        yield (
            f"{case.after.unfused} quantized products found no integer kernel in ONNX Runtime: their integers become "
            "floats before the arithmetic."
        )


def bound_by_overhead(case: Case) -> Iterator[str]:
    per_node = case.baseline.latency_ms.p50 / max(case.before.nodes, 1)
    if case.slow and per_node < OVERHEAD_PER_NODE_MS:
        yield (
            f"The uncompressed model takes {case.baseline.latency_ms.p50:.2g} ms for {case.before.nodes} nodes: at "
            f"{1e3 * per_node:.1f} µs a node, starting kernels outweighs the arithmetic. A larger batch shows the gain."
        )


def bound_by_memory(case: Case) -> Iterator[str]:
    tokens = case.workload.batch * (case.workload.seq_len or TOKENS_BOUND_BY_MEMORY)
    if case.slow and tokens < TOKENS_BOUND_BY_MEMORY and case.after.weight_bytes > 10e6:
        yield (
            f"With {tokens} positions a call each weight is read for {tokens} multiplications: the time goes into "
            "reading weights, so fewer bytes help and fewer operations do not."
        )


RULES: tuple[Callable[[Case], Iterator[str]], ...] = (
    zeros_stored_densely,
    no_vnni,
    integer_sums_overflow,
    half_precision_on_cpu,
    unfused_nodes,
    float_products_left,
    embedding_dominates,
    bound_by_memory,
    bound_by_overhead,
    graph_outweighs_weights,
)
