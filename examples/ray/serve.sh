#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One engine over the NPUs of a Ray cluster:
#   examples/ray/serve.sh MODEL [OPTION OF VLLM SERVE]...
# .venv-ascend has Ray; elsewhere `pip install --no-deps ray==2.60.0 msgpack` beside vllm-ascend. Several
# machines are joined first with `ray start`; without that, vLLM starts a Ray for this machine only,
# which ends with it. docs/scaling.md has the commands.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -d .venv-ascend/bin ] && PATH="$PWD/.venv-ascend/bin:$PATH"
# vLLM gives the devices to Ray's workers itself.
export RAY_EXPERIMENTAL_NOSET_ASCEND_RT_VISIBLE_DEVICES=1
export RAY_USAGE_STATS_ENABLED=0

model="${1:?usage: $0 MODEL [OPTION OF VLLM SERVE]...}"
exec vllm serve "$model" --distributed-executor-backend ray "${@:2}"
