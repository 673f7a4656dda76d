# SPDX-License-Identifier: Apache-2.0
# Every target builds the environment it needs first, if its lock files changed: .venv for the CPU,
# .venv-ascend for vllm-ascend on an emulated NPU, .venv-page for the chat page, .venv-docs for the
# documentation and the release. `make test-npu` alone uses a Python that is there.

# The first Python that runs and that the lock files have wheels for; override with PYTHON=...
find_python = for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& command -v $$p && break; done
ifdef PYTHON
PYTHON_NPU ?= $(PYTHON)
else
PYTHON := $(shell $(find_python))
PYTHON_NPU ?= python3
endif
VENV := .venv/bin
VENV_ASCEND := .venv-ascend/bin
VENV_PAGE := .venv-page/bin
VENV_DOCS := .venv-docs/bin
CHIPS ?= A2 310P
# Test processes side by side: each computes on one core, and takes up to 5 GiB.
JOBS ?= 2
SOURCES := vllm_glm41v_npu npu_emulator tools tests examples docker $(wildcard benchmarks) setup.py

# The one place for the settings of everything that runs here.
export HF_HUB_OFFLINE := 1
export VLLM_NO_USAGE_STATS := 1
export VLLM_CPU_KVCACHE_SPACE ?= 1
unexport VLLM_PLUGINS
# The environments are not compiled when built: the first import of a module does it for the rest.
unexport PYTHONDONTWRITEBYTECODE
# vLLM compiles its sampler even with enforce_eager; without a C++ compiler nothing is compiled.
ifeq ($(shell command -v $(CXX) 2>/dev/null),)
export TORCH_COMPILE_DISABLE := 1
endif

.DEFAULT_GOAL := help
.PHONY: help env env-ascend env-page env-docs env-suffix demo bench bench-quick docs dist check-dist test \
	test-all test-slow accuracy soak test-suffix test-page test-ascend test-in-tree test-npu lint \
	format clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build_env = test -n "$(PYTHON)" || { echo "No Python 3.11 or 3.12 found: install one, or name" \
	"it with 'make PYTHON=/path/to/python3.11 ...'."; exit 1; }; "$(PYTHON)" tools/build_env.py

env:  ## build .venv from requirements/*.lock
	@$(build_env) cpu

env-ascend:  ## build .venv-ascend likewise, with an emulated NPU
	@$(build_env) ascend

env-page:  ## build .venv-page likewise, with gradio and without vLLM
	@$(build_env) page

env-docs:  ## build .venv-docs likewise, with mkdocs and build
	@$(build_env) docs

# With --quiet mkdocs would not count its warnings. The variable silences a notice about its future.
docs: env-docs  ## the documentation in two languages, into site/; a dead link fails
	NO_MKDOCS_2_WARNING=1 $(VENV_DOCS)/python -m mkdocs build --strict --clean
	@echo "site/index.html"

dist: env-docs  ## wheel and sdist, into dist/
	rm -rf dist
	$(VENV_DOCS)/python -m build --no-isolation --outdir dist .

check-dist: dist env  ## look at them, and serve with the wheel in an empty environment
	$(VENV)/python tools/check_dist.py

# One process and one thread are quickest for the tiny model.
demo: env  ## ask the tiny model about a few pictures
	@VLLM_LOGGING_LEVEL=ERROR VLLM_ENABLE_V1_MULTIPROCESSING=0 OMP_NUM_THREADS=1 \
		$(VENV)/python examples/offline_image.py

BENCH_RESULTS ?= benchmark-results
run_benchmarks = status=0; $(VENV)/python -m benchmarks.run $(1) --output $(BENCH_RESULTS) \
	|| status=$$?; $(VENV)/python -m benchmarks.report $(BENCH_RESULTS) --output $(BENCH_RESULTS)/report.html \
	--markdown $(BENCH_RESULTS)/report.md || status=$$?; exit $$status

bench: env  ## every benchmark beside its peers, and a report (an hour or two; BENCH_RESULTS=FOLDER)
	@$(call run_benchmarks)

bench-quick: env  ## fewer rounds of them (a quarter of an hour on two quiet cores)
	@$(call run_benchmarks,--quick)

SOAK_SECONDS ?= 3600
soak: env  ## memory of a server under an hour of load, and a report (SOAK_SECONDS=600 for less)
	@mkdir -p $(BENCH_RESULTS)/soak; rm -f $(BENCH_RESULTS)/soak/soak.json; status=0; \
	$(VENV)/python -m benchmarks.soak --seconds $(SOAK_SECONDS) \
		--json $(BENCH_RESULTS)/soak/soak.json || status=$$?; \
	$(VENV)/python -m benchmarks.report $(BENCH_RESULTS)/soak --output $(BENCH_RESULTS)/soak/report.html \
		--markdown $(BENCH_RESULTS)/soak/report.md || status=$$?; exit $$status

lint: env  ## ruff and mypy
	$(VENV)/ruff check $(SOURCES)
	$(VENV)/ruff format --check $(SOURCES)
	$(VENV)/mypy $(SOURCES)

# Tests of the lane $(2) in the environment $(1): those of a file in one process, for they share
# engines; then, alone, those whose own processes fill all cores.
run_tests = $(1)/python -m pytest -m "$(2) and not ranks and not slow" -n $(JOBS) --dist loadfile \
	|| status=$$?; \
	$(1)/python -m pytest -m "$(2) and ranks and not slow" || status=$$?

test: lint  ## lint, then every quick test that needs no NPU
	@status=0; $(call run_tests,$(VENV),cpu); exit $$status

test-slow: env  ## the tests that take minutes: each benchmark once, at its smallest
	$(VENV)/python -m pytest -m slow

test-all:  ## everything in full: .ci/run, test-slow, accuracy, test-in-tree (an hour or more)
	.ci/run all

# What vLLM's suffix decoding needs, in a folder of its own: .venv stays what its lock files say.
.arctic/lib: requirements/arctic.lock | env
	rm -rf .arctic
	$(VENV)/python -m pip -q install --no-deps --target .arctic/tools -r requirements/arctic.lock
	PATH="$(CURDIR)/.arctic/tools/bin:$$PATH" PYTHONPATH="$(CURDIR)/.arctic/tools" \
		$(VENV)/python -m pip -q install --no-deps --no-build-isolation \
		--target .arctic/partial arctic-inference==0.1.1
	mv .arctic/partial $@
	touch $@

env-suffix: .arctic/lib

accuracy: env  ## the tiny model on everything that was held out of its training (three minutes)
	HELD_OUT=300 $(VENV)/python -m pytest -s tests/test_accuracy.py

test-suffix: env-suffix  ## vLLM's suffix decoding, with arctic-inference built from source (a minute)
	PYTHONPATH=.arctic/lib $(VENV)/python -m pytest -k suffix tests/decoding

test-page: env-page  ## the chat page in a headless Chromium, if there is one
	$(VENV_PAGE)/python -m pytest tests/page

test-ascend: env-ascend  ## the end-to-end tests on an emulated Atlas A2 and 310P (CHIPS="A2 310P")
	@status=0; for chip in $(CHIPS); do \
		echo "vllm-ascend on an emulated Atlas $$chip:"; \
		export NPU_EMULATOR_CHIP=$$chip; \
		$(call run_tests,$(VENV_ASCEND),ascend); \
	done; exit $$status

test-in-tree: env-ascend  ## what vLLM's own class gets wrong on the emulated chips (due when a lock changes)
	for chip in $(CHIPS); do NPU_EMULATOR_CHIP=$$chip IN_TREE=1 $(VENV_ASCEND)/python -m pytest \
		-m ascend tests/ascend/test_breakages.py tests/ascend/test_quantized_breakages.py || exit 1; done
	$(VENV_ASCEND)/python -m tests.ascend.sides

test-npu:  ## the end-to-end tests on a real NPU, and a report to send (PYTHON_NPU=python3)
	@$(PYTHON_NPU) tools/npu_report.py

format: env  ## let ruff rewrite what it can
	$(VENV)/ruff check --fix $(SOURCES)
	$(VENV)/ruff format $(SOURCES)

clean:  ## remove the environments and all caches
	rm -rf .venv .venv-ascend .venv-page .venv-docs .arctic site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	for project in . npu_emulator requirements/vllm-name; do \
		rm -rf $$project/build $$project/*.egg-info; done
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
