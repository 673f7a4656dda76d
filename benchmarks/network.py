# SPDX-License-Identifier: Apache-2.0
"""Time to first token with a picture, and decoding, on layers of the true size.

    python -m benchmarks.network [--rounds 7] [--tokens 17] [--json FILE]

Two layers of the decoder and two blocks of the vision tower of GLM-4.1V-9B with random weights and
a small vocabulary. Ours, in its default dtype, is asked in turn with vLLM's in-tree class in the
same dtype and in its own default one, with transformers, and with W8A8; each has answered
before. The floor of a token is the time in which its weights are read at this machine's bandwidth.
Answers in the same dtype are held against each other.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.full_size import bandwidth
from benchmarks.full_size_checkpoint import MID_LAYERS, SMALL_VOCABULARY, write_checkpoint
from benchmarks.results import add_json_option, device, machine, spread, write
from benchmarks.sides import IN_TREE, OURS, TRANSFORMERS, Figures, Side
from vllm_glm41v_npu.quant.description import FLOAT
from vllm_glm41v_npu.reporting.results import FLOOR, Missing, Row, compare

METRICS = {"first_ms": ("time to first token", "ms"), "token_ms": ("decoding", "ms a token")}
W8A8 = "W8A8"
LAYER_WEIGHTS = 4096 * 4608 + 4096 * 4096 + 4096 * 27392 + 13696 * 4096
PIXELS = 336
Rounds = dict[str, list[Figures]]


def start(stack: ExitStack, folder: Path, kinds: list[str]) -> dict[str, Side]:
    """Every side by its name in the report; ours is first."""
    mid, quantised = folder / FLOAT, folder / W8A8
    write_checkpoint(mid, FLOAT, MID_LAYERS, SMALL_VOCABULARY)
    options: dict[str, Any] = {"enable_prefix_caching": False, "mm_processor_cache_gb": 0}
    ours = stack.enter_context(Side(OURS, mid, **options))
    sides = {OURS: ours}
    sides[IN_TREE] = stack.enter_context(Side(IN_TREE, mid, ours.dtype, **options))
    if "default" in kinds:
        default = stack.enter_context(Side(IN_TREE, mid, **options))
        sides[f"{IN_TREE}, {default.dtype}"] = default
    if TRANSFORMERS in kinds:
        sides[TRANSFORMERS] = stack.enter_context(Side(TRANSFORMERS, mid, ours.dtype))
    if W8A8 in kinds:
        write_checkpoint(quantised, W8A8, MID_LAYERS, SMALL_VOCABULARY)
        sides[W8A8] = stack.enter_context(Side(OURS, quantised, ours.dtype, **options))
    return sides


def measure(sides: dict[str, Side], rounds: int, tokens: int) -> Rounds:
    """Figures of each side in each round; a first round warms up."""
    found: Rounds = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            answer = side.ask(seed=number, pixels=PIXELS, new_tokens=tokens)
            if number:
                found[name].append(answer)
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    return found


def equal(found: Rounds, one: str, other: str) -> str:
    """How many of the tokens of two sides are the same."""
    pairs = [
        same
        for a, b in zip(found[one], found[other], strict=True)
        for same in zip(a["tokens"], b["tokens"], strict=True)
    ]
    right = sum(a == b for a, b in pairs)
    return f"{right} of {len(pairs)} tokens of {one} and {other} are the same."


def rows(found: Rounds, dtype: str, floor_ms: float) -> list[Row]:
    """Ours beside each peer, and W8A8 beside ours in float."""
    case = f"{PIXELS} x {PIXELS} picture, {dtype}"
    lines = []
    for metric, (what, unit) in METRICS.items():
        times = {name: [one[metric] for one in answers] for name, answers in found.items()}
        ours = times.pop(OURS)
        quantised = times.pop(W8A8, None)
        lines += [compare(what, case, unit, ours, peer, taken) for peer, taken in times.items()]
        if quantised:
            peer = f"ours, {dtype}"
            lines.append(compare(what, f"{case}, {W8A8}", unit, quantised, peer, ours))
        if metric == "token_ms":
            lines.append(compare(what, case, unit, ours, FLOOR, [floor_ms] * len(ours)))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=17, help="new tokens, the first included")
    parser.add_argument("--without", nargs="+", default=[], help="default, transformers, W8A8")
    add_json_option(parser)
    options = parser.parse_args()
    missing = [Missing(what=kind, why="--without") for kind in options.without]
    kinds = {"default", TRANSFORMERS, W8A8} - {*options.without}
    if TRANSFORMERS in kinds and device() != "CPU":
        kinds.remove(TRANSFORMERS)
        missing.append(Missing(what=TRANSFORMERS, why="it would run on the CPU beside an NPU"))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sides = start(stack, Path(folder), sorted(kinds))
        dtype = sides[OURS].dtype
        found = measure(sides, options.rounds, options.tokens)
    print(f"{options.rounds} rounds of {options.tokens} tokens, ours in {dtype}, {machine()}")
    print("| | time to first token, ms | decoding, ms a token |\n|---|---|---|")
    for name, answers in found.items():
        cells = [spread([one[metric] for one in answers]) for metric in METRICS]
        print(f"| {name} | {' | '.join(cells)} |")
    same = [equal(found, OURS, peer) for peer in (IN_TREE, TRANSFORMERS) if peer in found]
    print("\n".join(same))
    write(
        options.json,
        "Time to first token and decoding, on layers of GLM-4.1V-9B's size",
        rows(found, dtype, floor_ms(dtype)),
        missing,
        notes=["Two decoder layers, two vision blocks, random weights.", *same],
    )


def floor_ms(dtype: str) -> float:
    """What reading the weights of a token takes."""
    import torch

    weights = MID_LAYERS * LAYER_WEIGHTS + SMALL_VOCABULARY * 4096
    return 1e3 * weights * getattr(torch, dtype).itemsize / bandwidth()


if __name__ == "__main__":
    main()
