# Everything runs inside .venv, which these targets make themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install quickstart test lint evidence bench-check clean

install: $(STAMP)

# torch goes in through pip first: with torch present, uv resolves the rest without fetching another build of it.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt uv torch
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e ".[dev]"
	$(BIN)/python -c "import torchvision" 2>/dev/null || $(BIN)/python tests/environment/torchvision_schemas.py
	touch $(STAMP)

quickstart: $(STAMP)
	$(BIN)/mmalign quickstart $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

test: lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "not slow" -n 2 $(ARGS)

evidence: $(STAMP)
	$(BIN)/python -m benchmarks.evidence $(ARGS)
	$(if $(ARGS),,$(BIN)/python -m benchmarks.vlm_evidence --seeds 0 1 2)
	$(if $(ARGS),,$(BIN)/python -m benchmarks.rewards_evidence)

bench-check: $(STAMP)
	$(BIN)/python -m benchmarks.bench_check $(ARGS)

clean:
	rm -rf $(VENV) runs build dist *.egg-info
