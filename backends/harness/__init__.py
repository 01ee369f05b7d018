"""lm-eval tasks on models of ours: an ONNX file or a torch model answers what the harness asks.

    task (YAML) ─► lm-eval ─► texts ─► tokens ─► scoring, writing ─► answers ─► lm-eval ─► metrics

`scoring`, `writing` and `trust` need no lm-eval; `model` and `tasks` do.
"""
