"""Plans to be looked through: for every check one that it objects to and one that it does not."""

import yaml
from typed import ROOT

SPARSE = str(ROOT / "tests" / "cases" / "targets" / "sparse-engine.yaml")
CNN, LSTM, VIT, LM, MINILM = (
    f"zoo:{name}" for name in ("digits-cnn", "digits-lstm", "digits-vit", "stdlib-lm", "minilm")
)
FOLDER = str(ROOT / "backends" / "zoo" / "weights" / "stdlib-lm")  # brings no data
IN_BLOCKS = {"ratio": 0.5, "round_to": 16}
INTERVAL = {"low": 1, "mid": 1.2, "high": 1.5, "unit": "×", "basis": "a guess"}
MESSY = """\
# my plan
schema: advisor.plan/1
model: zoo:digits-cnn
task: image-classification
target: mobile
colour: red
workload: {batch: 1, threads: 4096}
budget: {max_drop: {amount: 3, unit: pp}, max_size_byte: 100000}
stages:
- {technique: int8_dynamic, params: {embedings: false}}
- {technique: finetune, params: {epochs: 0}}
- {technique: channels, params: {ratio: 1.2}}
- {technique: magnitude, params: {ratio: 0.95}}
"""


def plan(*stages, model=CNN, drop=3, unit="", budget=None, **fields):
    """The mapping of a plan file; a stage is a technique, or a technique with its parameters."""
    unit = unit or ("%" if model in (LM, MINILM, FOLDER) else "pp")
    named = [{"technique": s} if isinstance(s, str) else {"technique": s[0], "params": s[1]} for s in stages]
    return {
        "schema": "advisor.plan/1",
        "model": model,
        "task": "",
        "target": "server-cpu",
        "workload": {"batch": 1, "threads": 1},
        "budget": {"max_drop": {"amount": drop, "unit": unit}, **(budget or {})},
        "stages": named,
        **fields,
    }


def written(folder, raw):
    path = folder / "plan.yaml"
    path.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw, sort_keys=False))
    return path


def estimate(**figures):
    names = ("size_bytes", "compression", "speedup", "latency_ms", "quality_drop")
    return {name: {**INTERVAL, **figures.get(name, {})} for name in names}


# check -> (a plan that it objects to, one that it does not)
PAIRS = {
    "unreadable": (plan("int8_static", colour="red"), plan("int8_static")),
    "model": (plan("int8_static", model="zoo:nothing"), plan("int8_static")),
    "request": (plan("int8_dynamic", model=LM, unit="pp"), plan("int8_dynamic", model=LM)),
    "order": (plan("int8_static", "channels", "finetune"), plan("channels", "finetune", "int8_static")),
    "names": (plan("int8_static", goal="sizes"), plan("int8_static", goal="size")),
    "code": (plan("int8_static", metric="mine:score"), plan("int8_static", metric="f1")),
    "data": (plan("int8_static", data={"evl": "e.npz"}), plan("int8_static", data={})),
    "threads": (plan("int8_static", workload={"threads": 4096}), plan("int8_static")),
    "quality-budget": (plan("int8_static", drop=8), plan("int8_static", drop=5)),
    "trains-nothing": (plan("channels", ("finetune", {"epochs": 0})), plan("channels", ("finetune", {"epochs": 1}))),
    "too-much-at-once": (
        plan(("channels", {"ratio": 0.9}), "finetune"),
        plan(("channels", {"ratio": 0.5}), "finetune"),
    ),
    "refused": (plan("magnitude", "finetune"), plan("magnitude", "finetune", target=SPARSE)),
    "advised-against": (plan("magnitude", "finetune", model=LM, target=SPARSE), plan("int8_static")),
    "warned": (plan(("channels", IN_BLOCKS), "finetune"), plan("int8_static")),
    "setting": (plan(("distill", {"compression": 6})), plan(("distill", {"compression": 2}))),
    "required": (plan("channels", "int8_static"), plan("channels", "finetune", "int8_static")),
    "better-sibling": (plan("fp16"), plan("int8_static")),
    "another-chain": (plan("int8_static", budget={"max_size_bytes": 10**9}), plan("int8_static")),
    "applies": (plan("layer_drop", "finetune"), plan("layer_drop", "finetune", model=VIT)),
    "gains-nothing": (plan("int8_static", model=LSTM), plan("int8_dynamic", model=LSTM)),
    "widths-off-block": (
        plan(("channels", {"ratio": 0.4, "round_to": 4}), "finetune"),
        plan(("channels", IN_BLOCKS), "finetune"),
    ),
    "wide-embeddings": (plan(("qat", {"embeddings": False}), model=MINILM), plan("qat", model=MINILM)),
    "speed-not-gained": (plan("fp16", goal="latency"), plan("int8_static", goal="latency")),
    "deployment-limits": (
        plan("int8_static", target="mobile"),
        plan("int8_static", target="mobile", budget={"max_size_bytes": 10**8, "max_memory_bytes": 10**9}),
    ),
    "budget-missed": (plan("int8_static", budget={"max_size_bytes": 1000}), plan("int8_static")),
    "stale-estimate": (plan("int8_static", estimate=estimate()), plan("int8_static")),
    "one-technique": (plan("int8_static", budget={"max_size_bytes": 50_000}), plan("int8_static")),
    "teacher-gap": (plan(("distill", {"compression": 100})), plan(("distill", {"compression": 2}))),
    "forward-kl": (plan("distill", model=LM), plan("distill")),
    "untrained-quantization": (plan("int8_dynamic", model=LM, drop=0.001), plan("int8_dynamic", model=LM, drop=50)),
}
# (seed, its sentence, the check that finds the mistake or the unmet criterion, a plan in which it does)
