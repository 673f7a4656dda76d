# SPDX-License-Identifier: Apache-2.0
"""The true 9B shape in int8 on this machine's CPU, beside what reading its weights takes.

    python -m benchmarks.full_size FOLDER [--type W8A8] [--layers 40] [--dtype float16] \\
        [--json FILE]

A checkpoint with random weights is written to FOLDER first, unless it is there already: 12.4 GB for
W8A8. W8A8SC is W8A8S after `glm41v compress`, and leaves both. The engine then answers a question
about a picture. What is not in int8 (embedding, output projection, vision tower) runs in --dtype.

The floor of a token is the time in which its weights can be read at the bandwidth that a sum or a
dot product over 512 MiB reaches in the same process; that of float is the same for weights that are
not quantized. Memory is the process's peak: what it allocated, and with the pages of files.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.report.results import FLOOR, Row, compare
from benchmarks.results import ROOT, add_json_option, machine, write

TYPES = ("W8A8", "W8A8S", "W8A8SC")
PICTURE = ROOT / "assets" / "pictures" / "photo.jpg"
GIB = 1 << 30


def prepare(folder: Path, kind: str, layers: int) -> Path:
    """The checkpoint of this type, which is written if need be."""
    from benchmarks.full_size_checkpoint import write_checkpoint
    from vllm_glm41v_npu.cli.compress import run
    from vllm_glm41v_npu.quant.w8a8sc.portable import encode
    from vllm_glm41v_npu.quant.w8a8sc.record import PORTABLE

    path = folder / f"{kind}-{layers}"
    if path.exists():
        return path
    begin = time.perf_counter()
    if kind == "W8A8SC":
        report = run(prepare(folder, "W8A8S", layers), path, 1, PORTABLE, encode)
        print(f"compressed to {report['ratio']:.1%} of int8; entropy {report['entropy_ratio']:.1%}")
    else:
        write_checkpoint(path, kind, layers)
    print(f"{path} written in {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    return path


class Memory(threading.Thread):
    """The largest amount of memory that this process had allocated since the thread started."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.allocated = 0

    def run(self) -> None:
        while True:
            self.allocated = max(self.allocated, resident("RssAnon"))
            time.sleep(0.02)


def resident(kind: str) -> int:
    """Bytes of resident memory: VmHWM is the peak of all, RssAnon what is allocated now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(kind))


def bandwidth() -> float:
    """Bytes a second of this process's threads: the best of a sum and a dot product."""
    import torch

    large, best = torch.ones(1 << 27), math.inf
    for _ in range(5):
        for read in (large.sum, lambda: large.dot(large)):
            begin = time.perf_counter()
            read()
            best = min(best, time.perf_counter() - begin)
    return large.nbytes / best


def measure(model: Path, options: argparse.Namespace) -> dict[str, float]:
    """Everything, in this process."""
    from PIL import Image
    from vllm import LLM, SamplingParams

    from vllm_glm41v_npu.cli.ask import conversation

    memory = Memory()
    memory.start()
    begin = time.perf_counter()
    llm = LLM(
        str(model),
        load_format="sharded_state" if options.type == "W8A8SC" else "auto",
        dtype=options.dtype,
        max_model_len=1024,
        max_num_seqs=1,
        kv_cache_memory_bytes=256 << 20,
        limit_mm_per_prompt={"image": 1, "video": 0},
        mm_processor_kwargs={"size": {"shortest_edge": 12544, "longest_edge": 2 * 336 * 336}},
        mm_processor_cache_gb=0,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=False,
    )
    figures = {"start_s": time.perf_counter() - begin}
    with Image.open(PICTURE) as picture:
        messages = conversation([picture.convert("RGB").resize((336, 336))], "What is it?")
    for count in (2, options.tokens):  # the first warms up
        params = SamplingParams(
            temperature=0, max_tokens=count, ignore_eos=True, logprobs=0, detokenize=False
        )
        (output,) = llm.chat(messages, params, use_tqdm=False)
    answer, times = output.outputs[0], output.metrics
    if not math.isfinite(answer.cumulative_logprob):
        raise SystemExit("The network's numbers left the range of its dtype.")
    figures |= {
        "prompt_tokens": len(output.prompt_token_ids),
        "first_token_s": times.first_token_latency,
        "token_s": (times.last_token_ts - times.first_token_ts) / (options.tokens - 1),
        "allocated": memory.allocated,
        "resident": resident("VmHWM"),
        "bandwidth": bandwidth(),
    }
    (sizes,) = llm.apply_model(weights_of_a_token)
    return figures | sizes


def weights_of_a_token(network: Any) -> dict[str, float]:
    """Bytes that a token reads: as they are, and if every weight were in the network's dtype."""
    import torch

    read = in_float = 0
    for name, layer in network.language_model.named_modules():
        packed = getattr(layer, "packed_weight", None)
        if packed is not None:
            read += packed.nbytes
            in_float += math.prod(packed.shape) * network.model_config.dtype.itemsize
        elif not name.endswith("embed_tokens"):
            own = sum(parameter.nbytes for parameter in layer.parameters(recurse=False))
            read, in_float = read + own, in_float + own
    return {"read": read, "read_in_float": in_float, "threads": torch.get_num_threads()}


def report(figures: dict[str, Any], options: argparse.Namespace) -> list[str]:
    floor, in_float = (figures[key] / figures["bandwidth"] for key in ("read", "read_in_float"))
    return [
        f"{options.layers} layers in {options.type}, other layers in {options.dtype}, "
        f"{figures['threads']} threads, {machine()}",
        "",
        "| | |",
        "|---|---|",
        f"| start-up | {figures['start_s']:.1f} s |",
        f"| first token, of {figures['prompt_tokens']} in the prompt with a picture "
        f"| {figures['first_token_s']:.2f} s |",
        f"| each further token | {figures['token_s']:.3f} s |",
        f"| its floor: {figures['read'] / 1e9:.2f} GB at {figures['bandwidth'] / 1e9:.1f} GB/s "
        f"| {floor:.3f} s |",
        f"| floor in {options.dtype}: {figures['read_in_float'] / 1e9:.1f} GB | {in_float:.3f} s |",
        f"| peak memory allocated | {figures['allocated'] / GIB:.1f} GiB |",
        f"| peak memory with pages of files | {figures['resident'] / GIB:.1f} GiB |",
    ]


def rows(figures: dict[str, Any], case: str) -> list[Row]:
    """The same for the report."""
    floor_ms = 1e3 * figures["read"] / figures["bandwidth"]
    return [
        compare("start-up", case, "s", [figures["start_s"]]),
        compare("time to first token", case, "ms", [1e3 * figures["first_token_s"]]),
        compare("decoding", case, "ms a token", [1e3 * figures["token_s"]], FLOOR, [floor_ms]),
        compare("peak memory allocated", case, "MiB", [figures["allocated"] / (1 << 20)]),
        compare("peak memory resident", case, "MiB", [figures["resident"] / (1 << 20)]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="where checkpoints are written, and kept")
    parser.add_argument("--type", choices=TYPES, default=TYPES[0])
    parser.add_argument("--layers", type=int, default=40, help="of the decoder; fewer for a trial")
    parser.add_argument("--tokens", type=int, default=17, help="new tokens, the first included")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float16")
    add_json_option(parser)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.folder, options)))
        return
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "TORCH_COMPILE_DISABLE": "1",
    }
    os.environ |= environment
    model = prepare(options.folder, options.type, options.layers)
    given = ("type", "layers", "tokens", "dtype")
    arguments = [f"--{name}={getattr(options, name)}" for name in given]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.full_size", str(model), "--child", *arguments],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"The engine ended with exit code {done.returncode}; see above.")
    figures = json.loads(done.stdout.splitlines()[-1])
    print("\n".join(report(figures, options)))
    case = f"{options.layers} layers in {options.type}, the rest in {options.dtype}"
    write(options.json, "The true shape in int8, beside its floor", rows(figures, case))


if __name__ == "__main__":
    main()
