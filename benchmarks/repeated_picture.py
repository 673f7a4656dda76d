# SPDX-License-Identifier: Apache-2.0
"""Time to first token for a picture that was seen before, beside that for a new one.

    python -m benchmarks.repeated_picture [--rounds 15] [--json FILE]

Layers of the true size, as in benchmarks/network.py, with vLLM's prefix cache and its cache of
processed pictures as they come. Each round shows both sides a new picture, and then asks another
question about it: all but that question is in the caches.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.full_size_checkpoint import MID_LAYERS, SMALL_VOCABULARY, write_checkpoint
from benchmarks.report.results import Row, compare
from benchmarks.results import add_json_option, machine, spread, write
from benchmarks.sides import IN_TREE, OURS, QUESTION, Figures, Side
from vllm_glm41v_npu.checkpoint.description import FLOAT

WHAT, UNIT = "time to first token", "ms"
NEW, SEEN = "new picture", "picture seen before"
AGAIN = "Which sign comes first in it?"
Rounds = dict[str, dict[str, list[Figures]]]


def measure(sides: list[Side], rounds: int) -> Rounds:
    """Figures by side and by NEW or SEEN; a first round warms up."""
    found: Rounds = {side.name: {NEW: [], SEEN: []} for side in sides}
    for number in range(rounds + 1):
        for side in sides:
            answers = {
                NEW: side.ask(seed=number, question=QUESTION),
                SEEN: side.ask(seed=number, question=AGAIN),
            }
            if number:
                for kind, answer in answers.items():
                    found[side.name][kind].append(answer)
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    return found


def rows(found: Rounds, dtype: str) -> list[Row]:
    """Beside the in-tree class, and what the caches save."""
    times = {
        side: {kind: [one["first_ms"] for one in answers] for kind, answers in kinds.items()}
        for side, kinds in found.items()
    }
    ours, theirs = times[OURS], times[IN_TREE]
    lines = [
        compare(WHAT, f"{kind}, {dtype}", UNIT, ours[kind], IN_TREE, theirs[kind])
        for kind in (NEW, SEEN)
    ]
    lines.append(compare(WHAT, f"{SEEN}, {dtype}", UNIT, ours[SEEN], f"ours, {NEW}", ours[NEW]))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    add_json_option(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / FLOAT
        write_checkpoint(model, FLOAT, MID_LAYERS, SMALL_VOCABULARY)
        with Side(OURS, model) as ours, Side(IN_TREE, model, ours.dtype) as theirs:
            dtype = ours.dtype
            found = measure([ours, theirs], options.rounds)
    hit = statistics.median(one["cached"] for one in found[OURS][SEEN])
    note = f"{hit:.0%} of the prompt's tokens are in the prefix cache the second time."
    print(f"{options.rounds} rounds, {dtype}, {machine()}. {note}")
    print("| | ours, ms | in-tree, ms |\n|---|---|---|")
    for kind in (NEW, SEEN):
        cells = [spread([one["first_ms"] for one in found[s][kind]]) for s in (OURS, IN_TREE)]
        print(f"| {kind} | {' | '.join(cells)} |")
    write(options.json, "A picture that is shown again", rows(found, dtype), notes=[note])


if __name__ == "__main__":
    main()
