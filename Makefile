# SPDX-License-Identifier: Apache-2.0
# Every target builds the CPU environment in .venv first, if its lock files changed.

# The first Python that runs and that the lock files have wheels for; override with PYTHON=...
find_python = for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& command -v $$p && break; done
ifndef PYTHON
PYTHON := $(shell $(find_python))
endif
VENV := .venv/bin
SOURCES := vllm_glm41v_npu npu_emulator tools tests examples docker $(wildcard benchmarks)

# The one place for the settings of everything that runs here.
export HF_HUB_OFFLINE := 1
export VLLM_NO_USAGE_STATS := 1
export VLLM_CPU_KVCACHE_SPACE ?= 1
unexport VLLM_PLUGINS
# vLLM compiles its sampler even with enforce_eager; without a C++ compiler nothing is compiled.
ifeq ($(shell command -v $(CXX) 2>/dev/null),)
export TORCH_COMPILE_DISABLE := 1
endif

.DEFAULT_GOAL := help
.PHONY: help env demo test lint format clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env:  ## build .venv from requirements/*.lock
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or 3.12 found: install one, or name it with" \
		"'make PYTHON=/path/to/python3.11 ...'."; exit 1; }
	@"$(PYTHON)" tools/build_env.py

# One process and one thread are quickest for the tiny model.
demo: env  ## ask the tiny model about a few pictures
	@VLLM_LOGGING_LEVEL=ERROR VLLM_ENABLE_V1_MULTIPROCESSING=0 OMP_NUM_THREADS=1 \
		$(VENV)/python examples/offline_image.py

lint: env  ## ruff and mypy
	$(VENV)/ruff check $(SOURCES) setup.py
	$(VENV)/ruff format --check $(SOURCES) setup.py
	$(VENV)/mypy $(SOURCES)

test: lint  ## lint, then every test that needs no NPU
	$(VENV)/python -m pytest -m "not npu and not ascend"

format: env  ## let ruff rewrite what it can
	$(VENV)/ruff check --fix $(SOURCES) setup.py
	$(VENV)/ruff format $(SOURCES) setup.py

clean:  ## remove the environment and all caches
	rm -rf .venv build *.egg-info requirements/vllm-name/build requirements/vllm-name/*.egg-info \
		.pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
