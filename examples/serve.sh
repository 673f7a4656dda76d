#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Serve the tiny model, or another: examples/serve.sh [MODEL [OPTION OF VLLM SERVE]...]
set -euo pipefail
cd "$(dirname "$0")/.."
[ -d .venv/bin ] && PATH="$PWD/.venv/bin:$PATH"
export VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-1}" # GiB; read on CPUs only
# vLLM compiles with g++; without it, it still runs, a little slower.
command -v "${CXX:-g++}" >/dev/null || export TORCH_COMPILE_DISABLE=1

model="${1:-assets/glm41v-tiny}"
exec vllm serve "$model" --served-model-name "$(basename "$model")" "${@:2}"
