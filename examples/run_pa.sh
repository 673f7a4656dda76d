#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# MindIE's run_pa.sh for this model, with its arguments in its order:
#   run_pa.sh [--trust_remote_code] --model_path MODEL --image_path FOLDER \
#     [MAX_BATCH_SIZE=1] [MAX_INPUT_LENGTH=3000] [MAX_OUTPUT_LENGTH=256]
# It uses as many devices as ASCEND_RT_VISIBLE_DEVICES names (one if it is not set); other variables
# that MindIE reads have no meaning here. PROMPT is the question.
set -euo pipefail
usage="usage: $0 [--trust_remote_code] --model_path MODEL --image_path FOLDER \
[max_batch_size=1] [max_input_length=3000] [max_output_length=256]"

options=()
if [ "${1:-}" = --trust_remote_code ]; then
  options+=(--trust-remote-code)
  shift
fi
if [ $# -lt 4 ] || [ $# -gt 7 ] || [ "$1" != --model_path ] || [ "$3" != --image_path ]; then
  echo "$usage" >&2
  exit 2
fi
devices=${ASCEND_RT_VISIBLE_DEVICES:-0}
commas=${devices//[^,]/}

command=$(dirname "$0")/../.venv/bin/glm41v
[ -x "$command" ] || command=glm41v
exec "$command" run "$4" --model "$2" --prompt "${PROMPT:-describe this image}" \
  --max-batch-size "${5:-1}" --max-input-length "${6:-3000}" --max-output-length "${7:-256}" \
  --tensor-parallel-size $((${#commas} + 1)) ${options[@]+"${options[@]}"}
