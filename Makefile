# Every target does all of its own set-up: a fresh machine needs Python 3.11 and this file.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= demo
WORKERS ?= 2

.PHONY: demo test test-full lint bench zoo evidence

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install -q torch==$$(sed -n 's/^torch==//p' constraints.txt)
	$(RUN)/python -m pip install -q -e '.[test]' -c constraints.txt
	$(RUN)/python -m compileall -q advisor backends knowledge cli.py
	touch $(READY)

demo: $(READY)
	$(RUN)/advisor demo --out $(OUT)

test: $(READY)
	$(RUN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not full"

test-full: $(READY)
	$(RUN)/python -m pytest

lint: $(READY)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports
	$(RUN)/advisor knowledge check

bench: $(READY)
	for b in planning trial_overhead exporting training cached_heads stage_sharing scale calibration roofline order streaming; do $(RUN)/python -m benchmarks.$$b || exit 1; done

# retrains the language models that ship with the package (some two hours on 2 cores)
zoo: $(READY)
	$(RUN)/python -m backends.zoo.train stdlib-lm stdlib-lm-large stdlib-gpt2 stdlib-moe

# measures the chains that knowledge/evidence lacks, for hours where it lacks all; goes on where it was cut short
evidence: $(READY)
	$(RUN)/python -m benchmarks.evidence
