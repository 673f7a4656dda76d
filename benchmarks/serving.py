# SPDX-License-Identifier: Apache-2.0
"""`vllm bench serve` on a server of ours, and on one with vLLM's in-tree class, in turn.

    python -m benchmarks.serving [--load 1 2 4 8 16] [--prompts 48] [--rounds 3] [--json FILE]

Both servers hold the tiny checkpoint and stay up; for each load, which is how many requests are
under way at once, either is asked for answers of 32 tokens about a picture of 336 x 336 that it has
not seen. Told as well is how long each server took to be healthy, and its memory at the end.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.commands import QUIET, vllm_bench
from benchmarks.in_tree import SIDES, TINY
from benchmarks.report.results import Row, compare
from benchmarks.results import add_json_option, machine, spread, write
from benchmarks.sides import IN_TREE, OURS, variables
from tests.end_to_end.servers import Server, serving

NEW_TOKENS = 32
LOAD = "requests at once"
METRICS = {  # key of vllm bench: figure, which part of the requests, unit
    "p50_ttft_ms": ("time to first token", "p50", "ms"),
    "p99_ttft_ms": ("time to first token", "p99", "ms"),
    "p50_tpot_ms": ("time per further token", "p50", "ms"),
    "p99_tpot_ms": ("time per further token", "p99", "ms"),
    "output_throughput": ("throughput", "", "token/s"),
}
OPTIONS = (
    *("--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--model", str(TINY)),
    *("--dataset-name", "random-mm", "--random-mm-bucket-config", "{(336, 336, 1): 1.0}"),
    *("--random-mm-base-items-per-request", "1", "--random-mm-num-mm-items-range-ratio", "0"),
    *("--random-mm-limit-mm-per-prompt", '{"image": 1}', "--random-input-len", "32"),
    *("--random-output-len", str(NEW_TOKENS), "--ignore-eos", "--temperature", "0"),
    *("--percentile-metrics", "ttft,tpot", "--metric-percentiles", "50,99", "--num-warmups", "2"),
    *("--disable-tqdm", "--save-result"),
)
Found = dict[str, dict[int, list[dict[str, float]]]]


def start(stack: ExitStack, side: str, folder: Path) -> tuple[Server, float]:
    """A server, and how many seconds it took to be healthy."""
    begin = time.perf_counter()
    environment = variables(side) | QUIET
    context = serving(TINY, folder / f"{side}.log", variables=environment)
    return stack.enter_context(context), time.perf_counter() - begin


def ask(server: Server, load: int, prompts: int, seed: int) -> dict[str, float]:
    """The figures of `vllm bench serve`."""
    options = ["--base-url", server.address, "--max-concurrency", str(load), "--seed", str(seed)]
    options += ["--num-prompts", str(prompts), *OPTIONS]
    found = vllm_bench(IN_TREE, "serve", *options, output="--result-filename")
    if found["failed"]:
        raise SystemExit(f"{found['failed']} of {prompts} requests failed at {server.address}.")
    return {key: found[key] for key in METRICS}


def memory_mib(server: Server) -> float:
    """Of all its processes; what they share counts once."""
    return sum(process.memory_full_info().pss for process in server.processes()) / (1 << 20)


def rows(found: Found) -> list[Row]:
    """A row for each metric and load."""
    lines = []
    for key, (what, part, unit) in METRICS.items():
        for load in found[OURS]:
            ours, theirs = ([one[key] for one in found[side][load]] for side in SIDES)
            lines.append(
                compare(
                    what,
                    part,
                    unit,
                    ours,
                    IN_TREE,
                    theirs,
                    higher_is_better=key == "output_throughput",
                    load=(load, LOAD),
                )
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--load", type=int, nargs="+", default=[1, 2, 4, 8, 16], help=LOAD)
    parser.add_argument("--prompts", type=int, default=48, help="requests in a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    add_json_option(parser)
    options = parser.parse_args()
    found: Found = {side: {load: [] for load in options.load} for side in SIDES}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        started = {side: start(stack, side, Path(folder)) for side in SIDES}
        for number in range(options.rounds):
            for load in options.load:
                for side, (server, _) in started.items():
                    answer = ask(server, load, options.prompts, seed=100 * number + load)
                    found[side][load].append(answer)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        memory = {side: memory_mib(server) for side, (server, _) in started.items()}
    print(f"{options.rounds} rounds of {options.prompts} requests, {machine()}")
    print(f"| | {LOAD} | ours | in-tree |\n|---|---|---|---|")
    lines = [
        compare(
            "start-up of a server", "", "s", [started[OURS][1]], IN_TREE, [started[IN_TREE][1]]
        ),
        compare("memory of a server", "", "MiB", [memory[OURS]], IN_TREE, [memory[IN_TREE]]),
    ]
    for key, (what, part, unit) in METRICS.items():
        for load in options.load:
            cells = [spread([one[key] for one in found[side][load]]) for side in SIDES]
            print(f"| {what} {part}, {unit} | {load} | {' | '.join(cells)} |")
    for row in lines:
        assert row.ours and row.theirs
        print(f"| {row.what}, {row.unit} | | {row.ours.median:.0f} | {row.theirs.median:.0f} |")
    write(
        options.json,
        "Servers under load (vllm bench serve)",
        [*lines, *rows(found)],
        notes=[
            "The tiny checkpoint, eager on a CPU; answers of 32 tokens about new pictures.",
            "Each server was started once, ours first.",
        ],
    )


if __name__ == "__main__":
    main()
