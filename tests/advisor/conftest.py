"""A run and a study as their JSON files hold them: figures in the range of real ones, texts that try to be markup."""

from copy import deepcopy

import pytest


def interval(low, mid, high, unit, basis="roofline of server-cpu"):
    return {"low": low, "mid": mid, "high": high, "unit": unit, "basis": basis}


def estimate(size, drop):
    base = 713_000
    return {
        "size_bytes": interval(0.98 * size, size, 1.04 * size, "bytes", "counted"),
        "compression": interval(0.96 * base / size, base / size, 1.02 * base / size, "×", "counted"),
        "speedup": interval(1.6, 2.2, 2.9, "×"),
        "latency_ms": interval(0.09, 0.12, 0.16, "ms"),
        "quality_drop": interval(0.2 * drop, drop, 2 * drop, "pp", "2 claims, 1 measured here"),
    }


def quality(value):
    return {"metric": "accuracy", "value": value, "higher_is_better": True, "unit": "pp"}


def stage(technique, family, params, size, value, file_bytes=0, **decision):
    return {
        "technique": technique,
        "family": family,
        "params": params,
        "seconds": 1.84,
        "peak_memory_bytes": 412_000_000,
        "parameters": size // 4,
        "macs": 1_200_000,
        "stored_bytes": size,
        "sparsity": 0.0,
        "file_bytes": file_bytes,
        "quality": quality(value),
        "decision": {"technique": technique, **decision},
        "reused": technique == "channels",
    }


def measurement(size, p50, value):
    return {
        "size_bytes": size,
        "latency_ms": {"p50": p50, "p95": 1.2 * p50},
        "peak_memory_bytes": 61_000_000,
        "quality": quality(value),
        "download_bytes": round(0.9 * size),
    }


CHAIN = [
    {"technique": "channels", "family": "reshape", "params": {"ratio": 0.5, "importance": "l2", "round_to": 4}},
    {"technique": "finetune", "family": "recover", "params": {"epochs": 3, "learning_rate": 0.001}},
    {"technique": "int8_static", "family": "quantize", "params": {"calibration": "minmax", "embeddings": True}},
]

RECOMMENDATION = {
    "schema": "advisor.recommendation/1",
    "request": {"model": "zoo:digits-cnn", "target": "server-cpu", "assumed": ["--data-level labeled: the zoo's data"]},
    "facts": {"arch": "cnn"},
    "profile": {"parameters": 178_000},
    "chains": [
        {
            "rank": 1,
            "id": "channels+finetune+int8_static",
            "stages": CHAIN,
            "estimate": estimate(51_000, 0.8),
            "fits": True,
            "reasons": [
                {
                    "rule": "cnn-channels",
                    "text": "Channels pay on every target: the layers that remain are dense.",
                    "source": "arXiv:2301.12900, table 2",
                },
                {"rule": "quantize-last", "text": "Later weight changes leave the grid.", "source": "seed S3"},
            ],
            "warnings": [],
        },
        {
            "rank": 2,
            "id": "int8_static",
            "stages": CHAIN[2:],
            "estimate": estimate(186_000, 0.3),
            "fits": True,
            "reasons": [],
            "warnings": [],
        },
    ],
    "refused": [
        {
            "technique": "magnitude",
            "rule": "unstructured-pays-nowhere",
            "text": "Zeros are stored and multiplied like other numbers.",
            "source": "https://github.com/microsoft/onnxruntime/issues/20052",
            "remedy": "prune channels instead",
        }
    ],
}

RUN = {
    "schema": "advisor.run/1",
    "plan": {
        "schema": "advisor.plan/1",
        "model": "zoo:digits-cnn",
        "task": "image-classification",
        "target": "server-cpu",
        "workload": {"batch": 1, "seq_len": None, "image_size": [1, 8, 8], "threads": 2},
        "budget": {"max_drop": {"amount": 2.0, "unit": "pp"}, "max_size_bytes": 100_000},
        "goal": "overall",
        "data": {},
        "metric": "",
        "seed": 0,
        "stages": [{"technique": s["technique"], "params": s["params"]} for s in CHAIN],
        "estimate": estimate(51_000, 0.8),
        "reasons": [],
    },
    "baseline": stage("export", "export", {}, 712_000, 0.9917, 713_000),
    "stages": [
        stage("channels", "reshape", CHAIN[0]["params"], 181_000, 0.871),
        stage(
            "finetune",
            "recover",
            CHAIN[1]["params"],
            181_000,
            0.9889,
            curve=[{"step": 10 * n, "loss": 0.9 / (n + 1)} for n in range(12)],
        ),
        stage("export", "export", {}, 181_000, 0.9889, 183_000),
        stage(
            "int8_static",
            "quantize",
            CHAIN[2]["params"],
            49_500,
            0.9861,
            52_100,
            skipped=[{"technique": "int8_static", "rule": "r", "observed": "2 additions", "required": "two inputs"}],
        ),
    ],
    "estimate": estimate(51_000, 0.8),
    "verification": {
        "schema": "advisor.verification/1",
        "workload": {"batch": 1, "image_size": [1, 8, 8], "threads": 2},
        "baseline": measurement(713_000, 0.241, 0.9889),
        "compressed": measurement(52_100, 0.101, 0.9833),
        "compression": 13.69,
        "speedup": {"value": 2.38, "low": 2.31, "high": 2.44},
        "efficiency": 32.4,
        "parity": {"max_abs_diff": 1.93, "cosine": 0.9981, "top1_agreement": 0.986},
        "environment": {"cpu": "x86-64 with avx512_vnni", "onnxruntime": "1.31.1", "threads": 2},
        "verdict": {"within_budget": True, "misses": []},
        "explanations": [{"rule": "small-model", "text": "The model is small: each node's fixed cost shows."}],
    },
    "warnings": ["3 layers were left in float"],
    "layers": [
        {
            "path": "stem.0",
            "kind": "conv",
            "role": "stem",
            "before": {"outputs": 32, "inputs": 1, "kernel": 9, "groups": 1, "copies": 1, "rank": 0, "bits": 32,
                       "density": 1.0, "tied_to": "", "bytes": 1280.0},
            "after": {"outputs": 16, "inputs": 1, "kernel": 9, "groups": 1, "copies": 1, "rank": 0, "bits": 8,
                      "density": 0.75, "tied_to": "", "bytes": 288.0},
        }
    ],
    "recommendation": RECOMMENDATION,
}  # fmt: skip


def trial(number, chain, size, speedup, drop, feasible=True, **more):
    row = {
        "number": number,
        "chain": chain,
        "stages": [{"technique": t, "params": {"ratio": 0.5} if t == "channels" else {}} for t in chain.split("+")],
        "state": "complete",
        "feasible": feasible,
        "excess": {"quality": drop / 2 - 1},
        "size_bytes": size,
        "compression": 713_000 / size if size else None,
        "speedup": speedup,
        "latency_ms": 0.24 / speedup if speedup else None,
        "quality": 0.98,
        "quality_drop": drop,
        "seconds": 4.2,
        "stopped_at": None,
    }
    return row | more


PARETO = {
    "schema": "advisor.pareto/1",
    "goal": "overall",
    "study": "zoo:digits-cnn-1234",
    "seconds": 71.5,
    "baseline": {"size_bytes": 713_000, "quality": 0.9917},
    "trials": [
        trial(0, "channels+finetune+int8_static", 52_100, 2.38, 0.6),
        trial(1, "int8_static", 187_000, 1.6, 0.1),
        trial(2, "channels+finetune+int8_static", 31_000, 2.7, 3.1, feasible=False),
        trial(3, "channels+finetune+int8_static", 90_000, 2.0, 0.3),
        trial(4, "magnitude+finetune", None, None, 9.0, False, state="pruned", stopped_at="magnitude"),
        trial(5, "channels+finetune", 183_000, 1.4, 0.2),
    ],
    "front": [0, 1, 3],
    "best": 0,
    "stages_requested": 17,
    "stages_executed": 12,
}


@pytest.fixture
def run_json():
    return deepcopy(RUN)


@pytest.fixture
def pareto_json():
    return deepcopy(PARETO)


@pytest.fixture
def recommendation_json():
    return deepcopy(RECOMMENDATION)
