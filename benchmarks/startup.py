# SPDX-License-Identifier: Apache-2.0
"""`vllm bench startup` on this package's class and on vLLM's in-tree one, in turn.

    python -m benchmarks.startup [--rounds 3] [--json FILE]

How long an engine in one process takes to be ready for the tiny checkpoint, compiled as by default:
cold, with new folders for all that vLLM and torch keep, and warm, with theirs of the start before.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.commands import vllm_bench
from benchmarks.in_tree import SIDES, TINY
from benchmarks.report.results import compare
from benchmarks.results import add_json_option, machine, spread, write
from benchmarks.sides import IN_TREE

CASES = {"cold_startup_times": "cold caches", "warm_startup_times": "warm caches"}


def run(side: str) -> dict[str, float]:
    """Seconds by CASES."""
    options = ["--model", str(TINY), "--max-model-len", "1024", "--max-num-seqs", "8"]
    options += ["--num-iters-cold", "1", "--num-iters-warmup", "1", "--num-iters-warm", "1"]
    options += ["--limit-mm-per-prompt", '{"image": 1, "video": 0}']
    found = vllm_bench(side, "startup", *options, output="--output-json")
    return {case: found[key][0] for key, case in CASES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    add_json_option(parser)
    options = parser.parse_args()
    rounds = []
    for number in range(options.rounds):
        rounds.append({side: run(side) for side in SIDES})
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    rows = []
    print(f"{options.rounds} rounds, {machine()}\n| | ours, s | in-tree, s |\n|---|---|---|")
    for case in CASES.values():
        ours, theirs = ([one[side][case] for one in rounds] for side in SIDES)
        print(f"| {case} | {spread(ours)} | {spread(theirs)} |")
        rows.append(compare("start-up of an engine", case, "s", ours, IN_TREE, theirs))
    write(options.json, "Start-up of an engine (vllm bench startup)", rows)


if __name__ == "__main__":
    main()
