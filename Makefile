# One command per duty; CI calls the same ones. Each sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Where torch comes from; for a CPU build elsewhere: make demo PIP_TORCH_FLAGS="--index-url <PyTorch's CPU index>"
PIP_TORCH_FLAGS ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test check bench clean

demo: $(READY) ## the main job on the embedded model: record, plan, run on local ranks, verify
	@$(BIN)/grace-moe demo

test: $(READY) ## all tests
	$(BIN)/pytest

check: $(READY) ## style, types and import floors
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY) ## what the results pages in benchmarks/ were made with
	$(BIN)/python benchmarks/embedded_model.py
	$(BIN)/python benchmarks/dispatch.py

$(READY): pyproject.toml constraints/cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(PIP_TORCH_FLAGS) -c constraints/cpu.txt torch
	$(BIN)/pip install -q -c constraints/cpu.txt -e '.[dev]'
	@touch $@

clean: ## forget the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
