# SPDX-License-Identifier: Apache-2.0
"""`vllm bench mm-processor` on this package's class and on vLLM's in-tree one, in turn.

    python -m benchmarks.mm_processor [--rounds 3] [--json FILE]

The tiny checkpoint with the true model's pixel limits, float32, one thread; random pictures and
clips. Printed are the medians, over requests and then rounds, of the time that vLLM counts for a
stage, and the ratio in-tree / ours, which is taken round by round.
"""

from __future__ import annotations

import argparse
import json
import sys

from benchmarks.commands import vllm_bench
from benchmarks.in_tree import SIDES, TINY
from benchmarks.report.results import compare
from benchmarks.results import add_json_option, machine, spread, write
from benchmarks.sides import IN_TREE

INPUTS = {
    "1024 x 1024 picture": {"bucket": "{(1024, 1024, 1): 1.0}", "limit": '{"image": 1}'},
    "clip of 60 frames of 360p": {"bucket": "{(360, 640, 60): 1.0}", "limit": '{"video": 1}'},
}
STAGES = {
    "apply_hf_processor_ms": "processing",
    "apply_prompt_updates_ms": "expanding the prompt",
    "preprocessor_total_ms": "in all, before the engine",
}
PIXELS = {"size": {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 2 * 3000}}


def run(side: str, name: str, prompts: int) -> dict[str, float]:
    """Medians of each stage in a fresh process, in ms."""
    given = INPUTS[name]
    options = ["--model", str(TINY), "--dtype", "float32", "--enforce-eager"]
    options += ["--max-model-len", "8192", "--mm-processor-kwargs", json.dumps(PIXELS)]
    options += ["--num-prompts", str(prompts), "--num-warmups", "2", "--disable-tqdm"]
    options += ["--random-input-len", "16", "--random-output-len", "1"]
    options += ["--random-mm-base-items-per-request", "1", "--random-mm-num-mm-items-range-ratio"]
    options += ["0", "--random-mm-bucket-config", given["bucket"]]
    options += ["--random-mm-limit-mm-per-prompt", given["limit"]]
    options += ["--limit-mm-per-prompt", given["limit"]]
    alone = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}
    found = vllm_bench(side, "mm-processor", *options, output="--output-json", more=alone)
    return {stage: found["mm_processor_stats"][stage]["median"] for stage in STAGES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=24)
    add_json_option(parser)
    options = parser.parse_args()
    rounds: list[dict[str, dict[str, dict[str, float]]]] = []
    for number in range(options.rounds):
        rounds.append(
            {name: {side: run(side, name, options.prompts) for side in SIDES} for name in INPUTS}
        )
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    print(f"one thread, {options.rounds} rounds of {options.prompts} requests, {machine()}")
    print("| | | ours, ms | in-tree, ms | in-tree / ours |\n|---|---|---|---|---|")
    rows = []
    for name in INPUTS:
        for stage, title in STAGES.items():
            ours, theirs = ([one[name][side][stage] for one in rounds] for side in SIDES)
            ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
            print(f"| {name} | {title} | {spread(ours)} | {spread(theirs)} | {spread(ratios)} |")
            rows.append(compare(title, name, "ms", ours, IN_TREE, theirs))
    write(options.json, "Pictures and clips in vLLM's processor (vllm bench mm-processor)", rows)


if __name__ == "__main__":
    main()
