# SPDX-License-Identifier: Apache-2.0
"""How many operators this package's network calls on each Ascend chip, beside vLLM's in-tree one.

    python -m benchmarks.operator_calls [--write docs/operators.md] [--json FILE]

Runs in .venv-ascend, on the emulated NPU, and takes four minutes: these are counts of calls, and no
times. Each network runs in processes of its own, with two random checkpoints that differ in depth
alone; what one decoder layer or vision block calls is the difference between the two.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.operator_page import (
    BLOCKS,
    LAYERS,
    NEW_TOKENS,
    REQUESTS,
    Calls,
    Run,
    count,
    difference,
    figures,
    page,
)
from benchmarks.report.results import Row, compare
from benchmarks.results import add_json_option, write
from tests.ascend.networks import WAITS, lift_refusals, so_far, start
from tests.ascend.sides import IN_TREE, OURS

SQUARE, WIDE = (112, 112), (60, 200)


def measure(checkpoint: Path) -> dict[str, Any]:
    """Calls by operator, in each kind of step of the engine."""
    from vllm import SamplingParams

    from npu_emulator import emulator
    from tests.end_to_end.cases import QUESTION, picture
    from tests.engines import engine
    from vllm_glm41v_npu.cli.ask import conversation

    options: dict[str, Any] = {
        "max_model_len": 2048,
        "limit_mm_per_prompt": {"image": 1, "video": 0},
        "mm_processor_cache_gb": 0,
        "enable_prefix_caching": False,
        "async_scheduling": False,
    }
    seed = 0
    with engine(checkpoint, **options) as llm:

        def ask(new_tokens: int, requests: int = 1, size: tuple[int, int] | None = None) -> Calls:
            """Calls of a run of requests that are all prefilled in the first step."""
            nonlocal seed
            seed += 1  # a picture seen before would not be encoded again
            pictures = [] if size is None else [picture(*size, seed)]
            prompts = [conversation(pictures, QUESTION)] * requests
            params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
            before = so_far()
            llm.chat(prompts, params, use_tqdm=False)
            return dict(so_far() - before)

        ask(NEW_TOKENS, size=SQUARE)
        whole = so_far()
        text, first, second = ask(1), ask(1, size=WIDE), ask(1, size=WIDE)
        checker = emulator.install()
        return {
            "whole": whole,
            "prefill": text,
            "decode": difference(ask(3), ask(2)),
            "decode together": difference(ask(3, REQUESTS), ask(2, REQUESTS)),
            "picture": difference(second, text),
            "first of a size": difference(first, text),
            "documents": {name: checker.table[name].document for name in whole if name != WAITS},
            "chip": checker.chip,
        }


def checkpoints(folder: Path) -> list[Path]:
    """The shallow and the deep one."""
    from tests.checkpoints import CHIP_SHAPES, write_checkpoint

    depths = zip(LAYERS, BLOCKS, strict=True)
    shapes = [replace(CHIP_SHAPES[0], layers=layers, vision_depth=n) for layers, n in depths]
    return [write_checkpoint(shape, folder / str(shape.layers)) for shape in shapes]


def run(chip: str, side: str, made: list[Path]) -> Run:
    """Measure a network with both checkpoints."""
    found = []
    for checkpoint in made:
        print(f"{chip}, {side}, {checkpoint.name} layers", file=sys.stderr, flush=True)
        out = checkpoint / "found.json"
        start(side, "benchmarks.operator_calls", "--child", side, checkpoint, out, chip=chip)
        found.append(json.loads(out.read_text()))
    return Run(*found)


def rows(runs: dict[str, dict[str, Run]]) -> list[Row]:
    """Calls of both for the report."""
    found = []
    for chip, sides in runs.items():
        ours, theirs = (figures(sides[side]) for side in (OURS, IN_TREE))
        for title, calls in ours.items():
            sums = [[float(sum(count(one)))] for one in (calls, theirs[title])]
            found.append(
                compare(f"operator calls, {title}", chip, "calls", sums[0], IN_TREE, sums[1])
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", type=Path, help="the page to write; else it is printed")
    add_json_option(parser)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        side, checkpoint, out = options.child
        if side == IN_TREE:
            lift_refusals()
        Path(out).write_text(json.dumps(measure(Path(checkpoint))))
        return
    from npu_emulator.settings import CHIPS

    with tempfile.TemporaryDirectory() as folder:
        made = checkpoints(Path(folder))
        runs = {chip: {s: run(chip, s, made) for s in (OURS, IN_TREE)} for chip in CHIPS}
    if options.write:
        options.write.write_text(page(runs))
    else:
        print(page(runs))
    write(options.json, "Operator calls on an emulated NPU", rows(runs))


if __name__ == "__main__":
    main()
