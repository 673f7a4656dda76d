# SPDX-License-Identifier: Apache-2.0
"""This package's network beside vLLM's in-tree one: the same checkpoint, dtype and threads.

    python -m benchmarks.in_tree [--model tiny|layers] [--rounds 5] [--enforce-eager] [--json FILE]

Each round starts a process for either, in turn, so that a machine whose speed drifts treats both
alike; the first round warms caches and is not counted. Printed are medians, the range, and the
ratio ours / in-tree (below 1 is better for ours), which is taken round by round.

`tiny` is the trained checkpoint of this repository; `layers` has layers of the true size (two of
the decoder, two of the vision tower, a small vocabulary) with random weights in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report.results import Row, compare
from benchmarks.results import ROOT, add_json_option, machine, spread, write
from benchmarks.sides import IN_TREE, OURS, variables

TINY = ROOT / "assets" / "glm41v-tiny"
SIDES = (OURS, IN_TREE)
METRICS = {
    "start_s": "start-up, s",
    "first_token_ms": "time to first token with a picture, ms",
    "decode_ms": "decoding, ms a token",
    "peak_mib": "peak memory, MiB",
}
NEW_TOKENS = 33
LAYERS: dict[str, dict[str, Any]] = {
    "text_config": {
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "mrope_section": [8, 12, 12],
    },
    "vision_config": {
        "hidden_size": 1536,
        "intermediate_size": 13696,
        "num_heads": 12,
        "out_hidden_size": 4096,
        "depth": 2,
        "image_size": 336,
    },
}


def write_layers(folder: Path) -> None:
    """The tiny checkpoint's files without its weights, its config at the true layer size."""
    for file in TINY.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((TINY / "config.json").read_text())
    text = LAYERS["text_config"].copy()
    config["text_config"]["rope_parameters"]["mrope_section"] = text.pop("mrope_section")
    config["text_config"] |= text
    config["vision_config"] |= LAYERS["vision_config"]
    (folder / "config.json").write_text(json.dumps(config))


def measure(model: str, enforce_eager: bool, repeats: int) -> dict[str, float]:
    """Everything of one side, in this process."""
    import numpy as np
    from PIL import Image
    from vllm import LLM, SamplingParams

    from vllm_glm41v_npu.cli.ask import conversation

    begin = time.perf_counter()
    llm = LLM(
        model,
        load_format="auto" if model == str(TINY) else "dummy",
        dtype="float32",
        max_model_len=2048,
        max_num_seqs=4,
        kv_cache_memory_bytes=256 << 20,
        limit_mm_per_prompt={"image": 1, "video": 0},
        mm_processor_kwargs={"size": {"shortest_edge": 12544, "longest_edge": 2 * 336 * 336}},
        enforce_eager=enforce_eager,
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
    )
    figures = {"start_s": time.perf_counter() - begin}
    rng = np.random.default_rng(0)

    def ask(new_tokens: int) -> float:
        picture = Image.fromarray(rng.integers(0, 256, (336, 336, 3), dtype=np.uint8))
        messages = conversation([picture], "What number is written in the picture?")
        params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
        begin = time.perf_counter()
        llm.chat(messages, params, use_tqdm=False)
        return 1e3 * (time.perf_counter() - begin)

    ask(NEW_TOKENS)  # warm
    first = [ask(1) for _ in range(repeats)]
    whole = [ask(NEW_TOKENS) for _ in range(repeats)]
    figures["first_token_ms"] = statistics.median(first)
    rest = statistics.median(whole) - figures["first_token_ms"]
    figures["decode_ms"] = rest / (NEW_TOKENS - 1)
    figures["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return figures


def run(side: str, model: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure one side in a fresh process."""
    environment = variables(side) | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "OMP_NUM_THREADS": str(options.threads),
    }
    command = [sys.executable, "-m", "benchmarks.in_tree", "--child", model]
    command += ["--repeats", str(options.repeats)] + ["--enforce-eager"] * options.enforce_eager
    done = subprocess.run(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"The {side} side failed with exit code {done.returncode}; see above.")
    return json.loads(done.stdout.splitlines()[-1])


def report(rounds: list[dict[str, dict[str, float]]]) -> list[str]:
    lines = ["| | ours | in-tree | ours / in-tree |", "|---|---|---|---|"]
    for metric, title in METRICS.items():
        ours, theirs = ([one[side][metric] for one in rounds] for side in SIDES)
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        lines.append(f"| {title} | {spread(ours)} | {spread(theirs)} | {spread(ratios)} |")
    return lines


def rows(rounds: list[dict[str, dict[str, float]]], case: str) -> list[Row]:
    """The same for the report."""
    found = []
    for metric, title in METRICS.items():
        ours, theirs = ([one[side][metric] for one in rounds] for side in SIDES)
        what, unit = title.rsplit(", ", 1)
        found.append(compare(what, case, unit, ours, IN_TREE, theirs))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", choices=("tiny", "layers"), default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=9, help="requests of a kind in a process")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--enforce-eager", action="store_true")
    add_json_option(parser)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.enforce_eager, options.repeats)))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = str(TINY)
        if options.model == "layers":
            write_layers(Path(folder))
            model = folder
        rounds: list[dict[str, Any]] = []
        for number in range(options.rounds + 1):
            rounds.append({side: run(side, model, options) for side in SIDES})
            print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
    counted = rounds[1:]
    case = f"{options.model}, float32, {options.threads} threads"
    print(f"{case}, {len(counted)} rounds, {machine()}")
    print("\n".join(report(counted)))
    write(options.json, "An engine of ours, and one with vLLM's own class", rows(counted, case))


if __name__ == "__main__":
    main()
