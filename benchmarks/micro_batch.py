# SPDX-License-Identifier: Apache-2.0
"""Micro batch beside the same engine without it, on two devices and over a link that is slow.

    python -m benchmarks.micro_batch [--delays 0 200 400] [--tokens 1024] [--rounds 5] [--json FILE]

Layers of the true size with random weights, float32, two ranks. In each round the same prompt is
prefilled with micro batch and without, in turn. A link is made slow by a time that a sum of all
tokens over the ranks takes at least, and one of half of them half of it; 0 is this machine's own,
gloo with micro batch and vLLM's shared memory without. Printed are medians and ranges of the time
to the first token, the ratio off / on of the same round (above 1 is better for it), and how much of
the sums' time is hidden: 1 - (time that a rank waited) / (time that the sums took), on rank 0.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.in_tree import write_layers
from benchmarks.report.results import Row, Spread, compare
from benchmarks.results import add_json_option, machine, spread, write

SIDES = ("off", "on")


class SlowLink:
    """vLLM's worker extension: in each rank, a link on which sums take their time."""

    get_model: Any  # of the worker that this extends

    def cut_from(self, fewest: int, delay: float) -> dict[str, float]:
        """Cut steps from `fewest` tokens on; a sum takes `delay` seconds a token at least.

        Returns what was counted since the last call.
        """
        import torch.distributed
        from vllm.distributed import get_tp_group
        from vllm.model_executor.layers import linear

        from vllm_glm41v_npu.models import micro_batch

        counts = {"taken": 0.0, "waited": 0.0}
        before = getattr(self, "counts", counts)

        class Sum:
            """One all-reduce, which is not over before the delay is."""

            def __init__(self, share: Any) -> None:
                seconds = delay * share.shape[0]
                self.ready = time.perf_counter() + seconds
                group = get_tp_group().device_group
                self.work = torch.distributed.all_reduce(share, group=group, async_op=True)
                counts["taken"] += seconds

            def wait(self) -> None:
                begin = time.perf_counter()
                self.work.wait()
                time.sleep(max(0.0, self.ready - time.perf_counter()))
                counts["waited"] += time.perf_counter() - begin

        def sum_now(share: Any) -> Any:
            begin = time.perf_counter()
            share = get_tp_group().all_reduce(share)
            time.sleep(max(0.0, begin + delay * share.shape[0] - time.perf_counter()))
            return share

        micro_batch.start_all_reduce = Sum
        linear.tensor_model_parallel_all_reduce = sum_now
        self.get_model().micro_batch.fewest = fewest
        self.counts = counts
        return before


def measure(llm: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each delay: times of both sides, round by round."""
    from vllm import SamplingParams

    chance = random.Random(0)
    prompt = {"prompt_token_ids": [chance.randrange(200) for _ in range(options.tokens)]}
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)

    def prefill(side: str, delay: float) -> tuple[float, dict[str, float]]:
        arguments = 2 if side == "on" else 1 << 30, delay
        llm.collective_rpc("cut_from", args=arguments)
        begin = time.perf_counter()
        llm.generate([prompt], params, use_tqdm=False)
        seconds = time.perf_counter() - begin
        return seconds, llm.collective_rpc("cut_from", args=arguments)[0]

    rows = []
    for milliseconds in options.delays:
        row: dict[str, Any] = {"delay_ms": milliseconds, "off": [], "on": [], "hidden": []}
        for number in range(options.rounds + 1):
            for side in SIDES:
                seconds, counts = prefill(side, milliseconds / 1e3 / options.tokens)
                if number:  # the first warms up
                    row[side].append(1e3 * seconds)
                    if side == "on" and milliseconds:
                        row["hidden"].append(1 - counts["waited"] / counts["taken"])
            print(f"{milliseconds} ms: round {number}", file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def report(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| a sum takes at least, ms | off, ms | on, ms | off / on | hidden |"]
    lines.append("|---|---|---|---|---|")
    for row in rows:
        ratios = [off / on for off, on in zip(row["off"], row["on"], strict=True)]
        hidden = f"{statistics.median(row['hidden']):.0%}" if row["hidden"] else ""
        cells = [f"{row['delay_ms']:g}", spread(row["off"]), spread(row["on"]), spread(ratios)]
        lines.append(f"| {' | '.join([*cells, hidden])} |")
    return lines


def figures(row: dict[str, Any]) -> list[Row]:
    """Return the text that a report shows for a delay."""
    case = f"a sum takes {row['delay_ms']:g} ms at least" if row["delay_ms"] else "no delay"
    found = [compare("prefill on two ranks", case, "ms", row["on"], "without", row["off"])]
    if row["hidden"]:
        hidden = Spread.of([100 * share for share in row["hidden"]])
        found.append(Row(what="hidden", case=case, unit="%", higher_is_better=True, ours=hidden))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--delays", type=float, nargs="+", default=[0, 200, 400], help="ms of a sum"
    )
    parser.add_argument("--tokens", type=int, default=1024, help="of the prompt")
    parser.add_argument("--rounds", type=int, default=5)
    add_json_option(parser)
    options = parser.parse_args()
    os.environ |= {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "HF_HUB_OFFLINE": "1",
    }
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    from vllm import LLM

    with tempfile.TemporaryDirectory() as folder:
        write_layers(Path(folder))
        llm = LLM(
            folder,
            load_format="dummy",
            dtype="float32",
            tensor_parallel_size=2,
            max_model_len=options.tokens + 8,
            max_num_batched_tokens=options.tokens,
            max_num_seqs=1,
            kv_cache_memory_bytes=256 << 20,
            limit_mm_per_prompt={"image": 0, "video": 0},
            enforce_eager=True,
            enable_prefix_caching=False,
            additional_config={"micro_batch": 2},
            worker_extension_cls="benchmarks.micro_batch.SlowLink",
        )
        rows = measure(llm, options)
        llm.llm_engine.engine_core.shutdown()
    print(f"{options.tokens} tokens, two ranks of one thread, {options.rounds} rounds, {machine()}")
    print("\n".join(report(rows)))
    title = f"Micro batch: a prefill of {options.tokens} tokens on two ranks"
    write(options.json, title, [row for found in rows for row in figures(found)])


if __name__ == "__main__":
    main()
