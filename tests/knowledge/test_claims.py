"""Published figures: each is there with its status, adds up, and shares a curve with no figure of another protocol."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from advisor.texts import claim_text
from knowledge.load import load_knowledge
from knowledge.reading import HERE, files
from knowledge.schema import Claim
from knowledge.techniques.catalog import CATALOG
from knowledge.typical import build

KNOWN = load_knowledge()
CLAIMS = KNOWN.claims
LOSSES = [claim for claim in CLAIMS.values() if claim.drop is not None]
RATIOS = [claim for claim in CLAIMS.values() if claim.value is not None]
NUMBER = r"(?<![\w.])(\d+(?:\.\d+)?)"
CHANGE = re.compile(rf"{NUMBER} → (\d+(?:\.\d+)?)(?![\d.]*[A-Z])")
SEEDS = (
    "Advanced Compression Strategies",
    "Step 4: Advanced Model Compression - Quick Reference",
    "Model Compression: Pruning + Distillation",
    "Model Compression Techniques",
    "Model Compression Strategies",
)

# what was read, as it was read, with its mark; then the claims with their figures
FACTS = [
    ("Llama-2-7B, 5.12 (4096) | 50 % SparseGPT / Wanda | 6.51 / 6.42 | [P]",
     {"sparsegpt-7b-50": 27.1, "wanda-7b-50": 25.4}),
    ("same | 4:8 SparseGPT / Wanda | 8.12 / 7.97 | [P]", {"sparsegpt-7b-48": 58.6, "wanda-7b-48": 55.7}),
    ("same | 2:4 SparseGPT / Wanda | 10.17 / 11.02 | [P]", {"sparsegpt-7b-24": 98.6, "wanda-7b-24": 115.2}),
    ("LLaMA-7B, 5.68 (2048) | 50 % SparseGPT / Wanda | 7.22 / 7.26 | [S] BESA README",
     {"besa-sparsegpt-50": 27.1, "besa-wanda-50": 27.8}),
    ("same | 2:4 SparseGPT / Wanda | 11.00 / 11.53 | [S] Wanda++ note",
     {"wandapp-sparsegpt-24": 93.7, "wandapp-wanda-24": 103.0}),
    ("Llama-2-7B, 5.47 | SliceGPT 25 % / 30 % | 7.24 / 8.12 | [S]", {"slicegpt-25": 32.4, "slicegpt-30": 48.4}),
    ("LLaMA-7B → 5.4B | LLM-Pruner, mean zero-shot 63.25 → | 59.23 (Alpaca) or 62.36 (LaMini), 1.18× faster | [P]",
     {"llm-pruner-alpaca": 4.02, "llm-pruner-lamini": 0.89, "llm-pruner-speed": 1.18, "llm-pruner-size": 1.25}),
    ("Llama-2-7B | ShortGPT, 27 % of the blocks removed | 80.22 % of the benchmark mean kept | [S]",
     {"shortgpt-7b": 19.78}),
    ("Llama-3.1-8B → 4B | Minitron width / depth, 94 B tokens, MMLU 65.3 → | 60.5 / 58.7 | [P]",
     {"minitron-width": 4.8, "minitron-depth": 6.6}),
    ("LLaMA-7B, 5.68 | RTN / GPTQ 4-bit | 6.29 / 6.09 | [P]", {"gptq-readme-rtn": 10.7, "gptq-readme-gptq": 7.2}),
    ("Llama-2-7B, 5.47, group 128 | RTN / GPTQ / GPTQ reordered / AWQ | 5.73 / 5.69 / 5.63 / 5.60 | [S]",
     {"awq-paper-rtn": 4.75, "awq-paper-gptq": 4.02, "awq-paper-gptq-reordered": 2.93, "awq-paper-awq": 2.38}),
    ("OPT-1.3B, 14.62 | int4 per tensor / per channel | 31087 / 31.91 | [P]",
     {"coreml-opt-int4-tensor": 212533.4, "coreml-opt-int4-row": 118.3}),
    ("DistilBERT: GLUE 79.5 → 77.0, 40 % fewer parameters, 60 % faster [P]",
     {"distilbert-glue": 2.5, "distilbert-size": 1.67, "distilbert-speed": 1.6}),
    ("GPT-2 1.5B → 120M, Dolly Rouge-L: SFT 23.2, KD 22.8, SeqKD 22.7, MiniLLM 24.6 [S]",
     {"minillm-kd": 1.7, "minillm-seqkd": 2.2, "minillm-reverse-kl": -6.0}),
    ("[P] ResNet-56 CIFAR-10: 93.53 → 93.77 at 2.13× fewer MACs, 93.64 at 2.57×",
     {"tp-resnet56-213": -0.24, "tp-resnet56-257": -0.11}),
    ("[P] ResNet-50: MACs 4.12 → 1.07 G (3.9×) but latency 45.22 → 20.68 ms (2.2×); at 5 % it was slower (46.53 ms)",
     {"tp-resnet50-speed": 2.19, "tp-resnet50-slower": 0.97}),
    ("[P] ViT-B/16: MACs 17.6 → 4.6 G, accuracy 85.21 → 80.19, batch-1 latency 5.21 → 3.99 ms",
     {"tp-vit-b16": 5.02, "tp-vit-b16-speed": 1.31}),
    ("NNCF ONNX PTQ: ResNet-50 −0.21 pp, MobileNetV2 −0.49 pp [P]",
     {"nncf-onnx-resnet50": 0.21, "nncf-onnx-mobilenetv2": 0.49}),
    ("Xeon 8480+, batch 1 [P]: ResNet-50 QDQ 76.46 → 76.13, 2.01×; BERT-base MRPC QDQ 2.22×, integer ops 3.13×",
     {"inc-resnet50-qdq": 0.33, "inc-resnet50-qdq-speed": 2.01, "inc-bert-qdq-speed": 2.22,
      "inc-bert-integerops-speed": 3.13}),
    ("No VNNI (Xeon Silver 4116): 15.22 → 15.82 ms; dynamically quantised HiFiGAN about 10× slower (issues)",
     {"ort-no-vnni": 0.96, "ort-hifigan-dynamic": 0.1}),
    ("SAM ViT-H MLP only 1.10× on A100; Llama-3-8B bf16 95.6 tok/s, int4 180.8, int4 + 2:4 226.0 [P]",
     {"torchao-sam-24": 1.1, "torchao-int4": 1.89, "torchao-int4-24": 2.36}),
    ("0.40–0.95× in the PyTorch tutorial's own output; within 5 % on GPT3-843M (issues)",
     {"pytorch-tutorial-24": 0.4, "tensorrt-gpt3-24": 1.05}),
    ("TinyChat Llama-2-7B: 2.94× on RTX 4090, 3.24× on Orin [P]. Marlin kernel up to 3.87× at batch 16–32 [P]",
     {"tinychat-4090": 2.94, "tinychat-orin": 3.24, "marlin-kernel": 3.87}),
    ("H200, Llama-3.1-8B AWQ: 1.33× at batch 1, 0.75× at batch 8; MMLU loss 5.66 % against FP8's 1.50 % [P]",
     {"modelopt-awq-batch-1": 1.33, "modelopt-awq-batch-8": 0.75, "modelopt-awq-mmlu": 5.66}),
    ("iPhone 14 Pro, ResNet-50, 1.52 ms: weight-only int8 1.49, W8A8 0.94, 75 % unstructured 1.28 [P]",
     {"coreml-resnet50-int8-weights": 1.02, "coreml-resnet50-w8a8": 1.62, "coreml-resnet50-sparse": 1.19}),
]  # fmt: skip

# every row of the common tables that name no source: where it stands, then the claims with their figures
TABLES = [
    ("Compression Budget vs Quality: <1%, ~5%, ~10%, ~15%, ~25%",
     {"s0-wanda-50": 1, "s0-distill-5x": 5, "s0-distill-10x": 10, "s0-distill-and-prune": 15, "s0-aggressive": 25}),
    ("Sequential Pipeline: ~12-15 %, 2×", {"s0-sequential": 13.5, "s0-nm-speed": 1.0}),
    ("Metrics: 150, 160, 170; 100×, 16.6 → 0.17 MB",
     {"s1-experts": 6.7, "s1-distillation": 6.2, "s1-parameters": 82.6, "s1-bytes": 100}),
    ("Expected Results: <15 %, 10-15 %", {"s1-target": 15, "s1-typical": 12.5}),
    ("Performance Comparison, loss: -0.8, -1.0, -10, -11",
     {"s2-wanda-50": 0.8, "s2-nm-24": 1.0, "s2-distill-10x": 10, "s2-combined": 11}),
    ("Performance Comparison, size: 2×, 2×, 10×, 20×",
     {"s2-wanda-size": 1, "s2-nm-size": 1, "s2-distill-size": 10, "s2-combined-size": 10}),
    ("Performance Comparison, speed: 1×, 2×, 1×, 2×",
     {"s2-wanda-speed": 1, "s2-nm-speed": 2, "s2-distill-speed": 1, "s2-combined-speed": 2}),
    ("Sparsity/Compression Ratios: <0.5, ~1, 2-5; ~5, ~10, ~20",
     {"s2-prune-30": 0.5, "s2-prune-50": 1, "s2-prune-70": 3.5, "s2-distill-3x": 5, "s2-distill-70x": 20}),
    ("Core Principle: 33pp, 77×, 5pp", {"s3-transformer-pruning": 33, "s3-distill-77x": 77, "s3-int8-no-recovery": 5}),
    ("Part 1, channels: 5.6pp, 1.3pp, 2×, 2×",
     {"s3-channels-raw": 5.6, "s3-channels-recovered": 1.3, "s3-channels-size": 3.83, "s3-channels-speed": 2}),
    ("Part 1, rounds: 10.1pp, 2.3pp", {"s3-oneshot-50": 10.1, "s3-iterative-50": 2.3}),
    ("Part 1, layers: 6.7pp, 3.1pp, 2×, 2×",
     {"s3-layers-raw": 6.7, "s3-layers-recovered": 3.1, "s3-layers-size": 1.64, "s3-layers-speed": 2}),
    ("Part 2: 3.6pp, 10pp, 26.7pp; 15pp, 5pp",
     {"s3-gpt2-25": 19.5, "s3-gpt2-62": 54.1, "s3-gpt2-62-at-once": 144.3, "s3-distill-6x-at-once": 15,
      "s3-distill-6x-in-stages": 5}),
    ("Capacity Matching Guidelines: 1-3pp, 3-7pp, 7-15pp",
     {"s3-distill-4x": 3, "s3-distill-8x": 7, "s3-distill-15x": 15}),
    ("Part 3: 4×, 1.3×", {"s3-svd-half-rank": 1, "s3-svd-bert": 1.24}),
    ("Part 4: 93.5, 92.8, 92.1; 2.4×, 4.9×, 20×",
     {"s3-bert-distilled": 1.7, "s3-pipeline-pruned": 2.4, "s3-pipeline": 3.1, "s3-distilled-size": 2.4,
      "s3-pipeline-pruned-size": 2.4, "s3-pipeline-size": 9.8, "s3-pipeline-arithmetic": 20}),
    ("Part 5: 60.5, 67.4, 73.3, 75.2",
     {"s3-mobilenet-small-050": 14.7, "s3-mobilenet-small-100": 7.8, "s3-mobilenet-large-075": 1.9}),
    ("Part 6, loss: 0.5, 2.5, 1.5, 3.5",
     {"s3-int8": 0.5, "s3-structured-50": 2.5, "s3-distill-2x": 1.5, "s3-quantized-and-pruned": 3.5}),
    ("Part 6, size: 4×, 2×, 2×, 8×",
     {"s3-int8-size": 3.95, "s3-structured-size": 4, "s3-distill-size": 2, "s3-quantized-and-pruned-size": 8}),
    ("section 5.1, loss: <1, 2-3, 4-6, 3-5, 5-10",
     {"s4-fp16": 1, "s4-int8": 2.5, "s4-int4": 5, "s4-pruning": 4, "s4-distillation": 7.5}),
    ("section 5.1, size: 2×, 4×, 8×, 2-10×, 10-100×",
     {"s4-fp16-size": 2, "s4-int8-size": 3.95, "s4-int4-size": 7.76, "s4-pruning-size": 1, "s4-distillation-size": 10}),
    ("section 5.1, speed: 2×, 3×, 4×, 2×, 10×",
     {"s4-fp16-speed": 2, "s4-int8-speed": 3, "s4-int4-speed": 4, "s4-pruning-speed": 2, "s4-distillation-speed": 10}),
    ("section 5.2: 92 % at 16×, 90 % at 40×",
     {"s4-int4-and-pruning": 8, "s4-distillation-and-int8": 10, "s4-int4-and-pruning-size": 7.76,
      "s4-distillation-and-int8-size": 40}),
]  # fmt: skip


def figure(name: str) -> float | None:
    claim = CLAIMS[name]
    return claim.drop if claim.value is None else claim.value


def changes(claim: Claim) -> list[tuple[float, float]]:
    """`a → b` in a claim's note and source."""
    found = CHANGE.findall(f"{claim.note} {claim.source}")
    return [(float(before), float(after)) for before, after in found]


def from_baseline(claim: Claim) -> list[tuple[float, float]]:
    return [(before, after) for before, after in changes(claim) if before == claim.baseline]


# -- what is there ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "figures"), FACTS, ids=[row[:40] for row, _ in FACTS])
def test_every_figure_of_the_sources_is_there_with_its_status(row, figures):
    status = {"[P]": "paper", "[S]": "reported", "(issues)": "reported"}
    expected = {status[mark] for mark in status if mark in row}
    assert len(expected) == 1
    for name, value in figures.items():
        assert figure(name) == value, name
        assert {CLAIMS[name].status} == expected, name


@pytest.mark.parametrize(("row", "figures"), TABLES, ids=[row[:40] for row, _ in TABLES])
def test_every_row_of_the_common_tables_is_there_as_unsourced_or_corrected(row, figures):
    for name, value in figures.items():
        assert figure(name) == value, name
        assert CLAIMS[name].status in ("unsourced", "corrected"), name


def test_every_common_figure_names_its_document_and_the_place_in_it():
    for claim in CLAIMS.values():
        if claim.status in ("unsourced", "corrected"):
            title = next((title for title in SEEDS if claim.source.startswith(f"{title}, ")), None)
            assert title is not None, f"{claim.id}: {claim.source}"


def test_what_was_not_found_is_not_filled_in():
    assert not [c.id for c in CLAIMS.values() if c.model == "LLaMA-7B" and c.params.get("pattern") == "4:8"]


def test_ids_are_unique_and_nothing_stands_without_protocol_and_source():
    ids = [raw["id"] for path in files(HERE / "claims") for raw in yaml.safe_load(path.read_text())["claims"]]
    assert [name for name, times in Counter(ids).items() if times > 1] == []
    for claim in CLAIMS.values():
        assert len(claim.protocol) >= 3, claim.id
        assert len(claim.source) >= 12 or claim.source.startswith("measured: "), claim.id
        assert (claim.status == "measured") == claim.source.startswith("measured: "), claim.id


def test_every_corrected_figure_says_what_is_printed():
    corrected = [claim for claim in CLAIMS.values() if claim.status == "corrected"]
    assert len(corrected) > 15
    assert [claim.id for claim in corrected if "printed as" not in claim.note] == []


# -- figures add up --------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", [c for c in LOSSES if from_baseline(c)], ids=lambda claim: claim.id)
def test_losses_follow_from_what_was_measured_before_and_after(claim):
    before, after = from_baseline(claim)[0]
    worse = -1 if claim.metric == "perplexity" else 1
    lost = worse * (before - after) * (1 if claim.unit == "pp" else 100 / before)
    assert claim.drop == pytest.approx(lost, abs=0.051)


def test_every_perplexity_with_a_baseline_gives_what_came_after():
    perplexities = [c for c in LOSSES if c.metric == "perplexity" and c.baseline]
    assert len(perplexities) > 25
    assert [c.id for c in perplexities if not from_baseline(c)] == []


def test_measured_similarities_follow_from_their_cosines():
    cosines = [(c, re.match(r"measured: ([01]?\.\d+)", c.source)) for c in LOSSES if c.model == "all-MiniLM-L6-v2"]
    assert len(cosines) > 20
    for claim, found in cosines:
        assert found is not None, claim.id
        assert claim.drop == pytest.approx(100 * (1 - float(found[1])), abs=0.051), claim.id


@pytest.mark.parametrize(
    "claim", [c for c in RATIOS if c.status != "corrected" and changes(c)], ids=lambda claim: claim.id
)
def test_ratios_follow_from_what_was_measured_before_and_after(claim):
    before, after = changes(claim)[0]
    ratio = after / before if "tokens a second" in claim.note else before / after
    assert claim.value == pytest.approx(ratio, abs=0.051)


def test_corrected_sizes_follow_from_arithmetic():
    bert = build(KNOWN.models["bert-base"])
    halved = CATALOG["layer_drop"](ratio=0.5).effect(bert)
    assert figure("s3-layers-size") == pytest.approx(bert.parameters / halved.parameters, abs=0.01)

    ffn = np.isin(bert.role, ("ffn_up", "ffn_down"))
    saved = int((bert.outputs * bert.inputs - 384 * (bert.outputs + bert.inputs))[ffn].sum())
    assert figure("s3-svd-bert") == pytest.approx(bert.parameters / (bert.parameters - saved), abs=0.01)
    assert figure("s3-svd-half-rank") == 4096 * 4096 / (2048 * (4096 + 4096))

    resnet18, stem, classifier, norms = 11_689_512, 64 * 3 * 49, (512 * 1000, 1000), 9600
    inner = resnet18 - stem - sum(classifier) - norms
    left = inner / 4 + stem / 2 + classifier[0] / 2 + classifier[1] + norms / 2
    assert figure("s3-channels-size") == pytest.approx(resnet18 / left, abs=0.01)

    assert figure("s4-int4-size") == pytest.approx(32 / (4 + 16 / 128), abs=0.01)
    assert figure("s1-parameters") == pytest.approx(4_150_000 / 50_257, abs=0.1)
    assert figure("s3-pipeline-size") == pytest.approx(440 / 180 * 4, abs=0.1)


# -- protocols -------------------------------------------------------------------------------------


def test_sequence_lengths_are_protocols_of_their_own():
    dense = {("Llama-2-7B", 5.12): 4096, ("Llama-2-7B", 5.47): 2048, ("LLaMA-7B", 5.68): 2048}
    found = [c for c in LOSSES if c.metric == "perplexity" and c.model in ("Llama-2-7B", "LLaMA-7B")]
    assert len(found) > 15
    for claim in found:
        assert claim.baseline is not None
        assert f"sequence length {dense[claim.model, claim.baseline]}" in claim.protocol, claim.id


def test_one_model_scores_the_same_by_one_protocol_wherever_it_is_named():
    known: dict[tuple[str, str, str], float] = {}
    for claim in LOSSES:
        if claim.baseline is not None and claim.protocol != "not named":
            key = (claim.model, claim.metric, claim.protocol)
            assert known.setdefault(key, claim.baseline) == claim.baseline, claim.id


def test_a_model_has_one_size():
    sizes: dict[str, set[float]] = {}
    for claim in CLAIMS.values():
        if claim.parameters is not None:
            sizes.setdefault(claim.model, set()).add(claim.parameters)
    assert {model: found for model, found in sizes.items() if max(found) > 1.01 * min(found)} == {}


# -- what estimates see ----------------------------------------------------------------------------


def test_estimates_see_losses_of_single_techniques_and_no_ratios():
    for technique, found in KNOWN.claims_by_technique.items():
        for claim in found:
            assert (claim.technique, claim.estimate, claim.chain) == (technique, True, ())
            assert claim.metric in ("accuracy", "perplexity", "similarity")
            assert claim.drop is not None
    assert {claim.metric for claim in RATIOS} == {"speedup", "compression"}


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"drop": None}, "drop", "is missing"),
        ({"metric": "speedup", "unit": "×", "value": 2.0, "estimate": False}, "drop", "speedup has none"),
        ({"metric": "speedup", "unit": "×", "drop": None, "estimate": False}, "value", "is missing"),
        ({"metric": "speedup", "unit": "×", "drop": None, "value": 2.0}, "estimate", "losses of single techniques"),
        ({"metric": "compression", "unit": "%", "drop": None, "value": 2.0, "estimate": False}, "unit", "are in ×"),
        ({"metric": "speedup", "unit": "×", "drop": None, "value": 0.0, "estimate": False}, "value", "greater than 0"),
        ({"chain": ["channels", "finetune"]}, "estimate", "losses of single techniques"),
        ({"chain": ["finetune", "fp16"], "estimate": False}, "chain", "lacks channels"),
        ({"chain": ["channels", "finetun"], "estimate": False}, "chain", "unknown technique"),
    ],
)
def test_figures_that_contradict_themselves_are_refused(change, field, words):
    sound = {
        "id": "c", "technique": "channels", "params": {"ratio": 0.5}, "arch": "cnn", "model": "m", "protocol": "p",
        "metric": "accuracy", "unit": "pp", "drop": 1.0, "source": "me, page 3", "status": "reported",
    }  # fmt: skip
    assert Claim.model_validate(sound).drop == 1.0
    with pytest.raises(ValidationError) as refused:
        Claim.model_validate({**sound, **change})
    error = refused.value.errors()[0]
    raised = error.get("ctx", {}).get("error")
    assert (raised.loc[0] if hasattr(raised, "loc") else error["loc"][0]) == field
    assert words in error["msg"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tinychat-4090", "2.94× faster"),
        ("modelopt-awq-batch-8", "0.75× as fast"),
        ("distilbert-size", "1.67× smaller"),
        ("s2-wanda-size", "1× as large"),
        ("tp-resnet56-213", "0.24 pp gained"),
        ("wanda-7b-50", "25.4 % lost"),
    ],
)
def test_figures_in_words(name, text):
    assert claim_text(CLAIMS[name].model_dump(mode="json")) == text
