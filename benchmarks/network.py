# SPDX-License-Identifier: Apache-2.0
"""Time to first token with a picture, and decoding, on layers of the true size.

    python -m benchmarks.network [--rounds 7] [--tokens 17] [--json FILE]

Two layers of the decoder and two blocks of the vision tower of GLM-4.1V-9B with random weights and
a small vocabulary. Ours, in its default dtype, is asked in turn with one peer after the other: the
in-tree class of vLLM in the same dtype and in its own default one, transformers, and ours in W8A8.
Two networks are in memory at a time, of 5 GB each in float32. The floor of a token is the time in
which its weights are read at this machine's bandwidth. Answers in the same dtype are held against
each other.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.full_size import bandwidth
from benchmarks.full_size_checkpoint import MID_LAYERS, SMALL_VOCABULARY, write_checkpoint
from benchmarks.report.results import FLOOR, Missing, Row, compare
from benchmarks.results import add_json_option, device, machine, spread, write
from benchmarks.sides import IN_TREE, OURS, TRANSFORMERS, Figures, Side
from vllm_glm41v_npu.checkpoint.description import FLOAT

METRICS = {"first_ms": ("time to first token", "ms"), "token_ms": ("decoding", "ms a token")}
W8A8 = "W8A8"
DEFAULT = "default"  # the in-tree class in its own dtype
KINDS = (IN_TREE, DEFAULT, TRANSFORMERS, W8A8)
PIXELS = 336
UNCACHED: dict[str, Any] = {"enable_prefix_caching": False, "mm_processor_cache_gb": 0}
Pair = tuple[list[Figures], list[Figures]]
"""Of ours and of a peer, one a round."""


def peer(kind: str, folder: Path, dtype: str) -> Side:
    """The side of this kind, beside ours in `dtype`."""
    if kind == TRANSFORMERS:
        return Side(TRANSFORMERS, folder / FLOAT, dtype)
    if kind == W8A8:
        write_checkpoint(folder / W8A8, W8A8, MID_LAYERS, SMALL_VOCABULARY)
        return Side(OURS, folder / W8A8, dtype, **UNCACHED)
    return Side(IN_TREE, folder / FLOAT, "auto" if kind == DEFAULT else dtype, **UNCACHED)


def measure(sides: tuple[Side, Side], rounds: int, tokens: int) -> Pair:
    """Figures of both sides in each round; a first round warms up."""
    found: Pair = [], []
    for number in range(rounds + 1):
        for side, answers in zip(sides, found, strict=True):
            answer = side.ask(seed=number, pixels=PIXELS, new_tokens=tokens)
            if number:
                answers.append(answer)
    return found


def same_tokens(pair: Pair, name: str) -> str:
    """How many of the tokens of two sides are the same."""
    pairs = [
        both
        for a, b in zip(*pair, strict=True)
        for both in zip(a["tokens"], b["tokens"], strict=True)
    ]
    right = sum(a == b for a, b in pairs)
    return f"{right} of {len(pairs)} tokens of ours and {name} are the same."


def rows(found: dict[str, Pair], dtype: str, floor_ms: float) -> list[Row]:
    """Ours beside each peer, and W8A8 beside ours in `dtype`."""
    case = f"{PIXELS} x {PIXELS} picture, {dtype}"
    lines = []
    for metric, (what, unit) in METRICS.items():
        for name, pair in found.items():
            ours, theirs = ([one[metric] for one in answers] for answers in pair)
            if name == W8A8:
                lines.append(compare(what, f"{case}, {W8A8}", unit, theirs, f"ours, {dtype}", ours))
            else:
                lines.append(compare(what, case, unit, ours, name, theirs))
    first, _ = next(iter(found.values()))
    taken = [one["token_ms"] for one in first]
    return [*lines, compare("decoding", case, "ms a token", taken, FLOOR, [floor_ms] * len(taken))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=17, help="new tokens, the first included")
    parser.add_argument("--without", nargs="+", default=[], choices=KINDS[1:], help="leave out")
    add_json_option(parser)
    options = parser.parse_args()
    missing = [Missing(what=kind, why="--without") for kind in options.without]
    kinds = [kind for kind in KINDS if kind not in options.without]
    if TRANSFORMERS in kinds and device() != "CPU":
        kinds.remove(TRANSFORMERS)
        missing.append(Missing(what=TRANSFORMERS, why="it would run on the CPU beside an NPU"))
    print(f"{options.rounds} rounds of {options.tokens} tokens, {machine()}")
    print("| | time to first token, ms | decoding, ms a token |\n|---|---|---|")
    found: dict[str, Pair] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder / FLOAT, FLOAT, MID_LAYERS, SMALL_VOCABULARY)
        with Side(OURS, folder / FLOAT, **UNCACHED) as ours:
            dtype = ours.dtype
            for kind in kinds:
                with peer(kind, folder, dtype) as side:
                    title = f"{IN_TREE}, {side.dtype}" if kind == DEFAULT else kind
                    found[title] = measure((ours, side), options.rounds, options.tokens)
                for who, answers in zip((f"ours, {dtype}", title), found[title], strict=True):
                    cells = [spread([one[metric] for one in answers]) for metric in METRICS]
                    print(f"| {who} | {' | '.join(cells)} |", flush=True)
    same = [same_tokens(found[kind], kind) for kind in (IN_TREE, TRANSFORMERS) if kind in found]
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

    from benchmarks.int8_linear import SHAPES

    layer = sum(columns * rows for columns, rows in SHAPES.values())
    hidden_size, _ = SHAPES["qkv_proj"]
    weights = MID_LAYERS * layer + SMALL_VOCABULARY * hidden_size
    return 1e3 * weights * getattr(torch, dtype).itemsize / bandwidth()


if __name__ == "__main__":
    main()
