# SPDX-License-Identifier: Apache-2.0
"""The exact int8 linear layers of this package beside vLLM's kernel and float32.

    python -m benchmarks.int8_linear [--quick] [--avx2] [--threads 1] [--json FILE]

The four linear layers of a decoder layer of GLM-4.1V-9B, in turn with each kernel, round by round,
so that a machine whose speed drifts treats all alike; the first round warms caches and is not
counted. Printed are medians and ranges in ms, the ratio vLLM's time / ours (above 1 is better for
ours) round by round, and the bandwidth at which one token reads the weight, beside that of the
faster of a sum and a dot product over 256 MiB. Then whether the integer products are exact. One
thread is timed by its own processor time, which other programs on the machine disturb less;
several by the clock.

`--avx2` forbids PyTorch, oneDNN and numba what a CPU can do beyond AVX2. On a CPU with VNNI that
shows the kernels as a CPU without it runs them: there vLLM's is neither fast nor exact.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.report.results import FLOOR, Row, compare
from benchmarks.results import add_json_option, machine, spread, write
from vllm_glm41v_npu.cpu.kernels import int8_linear, int8_matmul, pack_weight

SHAPES = {  # name: (K, N)
    "qkv_proj": (4096, 4608),
    "o_proj": (4096, 4096),
    "gate_up_proj": (4096, 27392),
    "down_proj": (13696, 4096),
}
OURS, SMALL, VLLM, FLOAT = "ours", "ours, W8A8S", "vLLM", "float32"
SUM, DOT = READS = "sum", "dot"  # of 256 MiB: how fast memory is read
LAYER = "all four"
ONLY_AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+avx,+avx2,+bmi,+bmi2,+fma,+popcnt,+sse4.2",
}
Figures = dict[str, list[float]]


class VllmKernel:
    """vLLM's W8A8 kernel for the CPU, as its compressed-tensors scheme calls it."""

    def __init__(self, weight: Tensor) -> None:
        from vllm import _custom_ops
        from vllm.platforms import current_platform

        current_platform.import_kernels()
        self.ops = _custom_ops
        self.scale = torch.ones(len(weight))  # the handler keeps its address only
        self.handler = _custom_ops.create_onednn_scaled_mm(
            weight.t(), self.scale, torch.float32, True, False, 32
        )

    def __call__(self, x: Tensor) -> Tensor:
        out = torch.empty(len(x), self.handler.n)
        ones = torch.ones(len(x), 1)
        return self.ops.onednn_scaled_mm(self.handler, x, out, ones, None, None, None)


def random_int8(rows: int, columns: int) -> Tensor:
    return torch.randint(-127, 128, (rows, columns), dtype=torch.int8)


def four_bits(weight: Tensor) -> Tensor:
    """A weight of W8A8S: within 4 bits but for 1 in 100."""
    return torch.where(torch.rand(weight.shape) < 0.01, weight, weight // 16)


def milliseconds(layer: Callable[[Tensor], Tensor], x: Tensor) -> float:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    layer(x)
    return 1e3 * (clock() - begin)


def measure(columns: int, rows: int, rounds: dict[int, int]) -> dict[int, Figures]:
    """Times in ms by the number of tokens and by kernel, of so many rounds."""
    weight = random_int8(rows, columns)
    whole, small = pack_weight(weight, "int8"), pack_weight(four_bits(weight), "int4")
    scale, real, large = torch.ones(rows), weight.float(), torch.ones(2, 1 << 25)
    layers: dict[str, Callable[[Tensor], Tensor]] = {
        OURS: lambda x: int8_linear(x, whole, scale),
        SMALL: lambda x: int8_linear(x, small, scale),
        VLLM: VllmKernel(weight),
        FLOAT: lambda x: torch.nn.functional.linear(x, real),
        SUM: lambda x: large.sum(),
        DOT: lambda x: torch.dot(*large),
    }
    figures: dict[int, Figures] = {}
    for tokens, count in rounds.items():
        x = random_int8(tokens, columns)
        times: Figures = {name: [] for name in layers if name not in READS or tokens == 1}
        for _ in range(count + 1):
            for name, kept in times.items():
                kept.append(milliseconds(layers[name], x.float() if name == FLOAT else x))
        figures[tokens] = {name: kept[1:] for name, kept in times.items()}
    return figures


def add_layer(figures: dict[str, dict[int, Figures]]) -> None:
    """The sum over the four linear layers, round by round."""
    parts = list(figures.values())
    figures[LAYER] = {
        tokens: {
            name: [sum(four) for four in zip(*(f[tokens][name] for f in parts), strict=True)]
            for name in times
        }
        for tokens, times in parts[0].items()
    }


def ratios(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def time_table(figures: dict[str, dict[int, Figures]]) -> list[str]:
    lines = [
        f"| layer | tokens | {OURS}, ms | {SMALL}, ms | {VLLM}, ms | {FLOAT}, ms "
        f"| {VLLM} / ours | {FLOAT} / ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for layer, by_tokens in figures.items():
        for tokens, times in by_tokens.items():
            cells = [spread(times[name]) for name in (OURS, SMALL, VLLM, FLOAT)]
            cells += [spread(ratios(times[name], times[OURS])) for name in (VLLM, FLOAT)]
            lines.append(f"| {layer} | {tokens} | " + " | ".join(cells) + " |")
    return lines


def bandwidths(layer: str, times: Figures) -> tuple[list[float], list[float]]:
    """GB/s of ours, which reads the weight for one token, and of reading alone."""
    sizes = {name: columns * rows for name, (columns, rows) in SHAPES.items()}
    sizes[LAYER] = sum(sizes.values())
    arrays = len(SHAPES) if layer == LAYER else 1
    best = map(min, times[SUM], times[DOT])
    read = [arrays * (1 << 28) / t / 1e6 for t in best]
    return [sizes[layer] / t / 1e6 for t in times[OURS]], read


def bandwidth_table(figures: dict[str, dict[int, Figures]]) -> list[str]:
    """How fast one token reads the weight, beside the faster of two ways to read, by the round."""
    lines = ["| layer | ours, GB/s | read, GB/s | share |", "|---|---|---|---|"]
    for layer, by_tokens in figures.items():
        ours, read = bandwidths(layer, by_tokens[1])
        lines.append(
            f"| {layer} | {spread(ours)} | {spread(read)} | {spread(ratios(ours, read))} |"
        )
    return lines


def exactness_table() -> list[str]:
    """The largest error of an integer product as a share of the largest product."""
    lines = ["| data | ours | ours, W8A8S | vLLM |", "|---|---|---|---|"]
    shapes = (32, 4096), (512, 4096)
    samples = {
        "Gaussian": [(40 * torch.randn(s)).round().clamp(-127, 127).to(torch.int8) for s in shapes],
        "uniform": [random_int8(*shape) for shape in shapes],
        "all 127": [torch.full(shape, 127, dtype=torch.int8) for shape in shapes],
    }
    for name, (x, weight) in samples.items():
        exact = x.double() @ weight.double().t()
        results = [int8_matmul(x, pack_weight(weight, form)) for form in ("int8", "int4")]
        errors = [
            float((result.double() - exact).abs().max() / exact.abs().max())
            for result in (*results, VllmKernel(weight)(x))
        ]
        cells = [f"{100 * error:.2g} %" if error else "exact" for error in errors]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def report_rows(figures: dict[str, dict[int, Figures]]) -> list[Row]:
    """Times of a whole layer, and the bandwidth of one token."""
    found = []
    for tokens, times in figures[LAYER].items():
        case = f"four linear layers, tokens: {tokens}"
        for kind, name in {OURS: "W8A8", SMALL: "W8A8S"}.items():
            for peer in (VLLM, FLOAT):
                found.append(compare(f"{name} layer", case, "ms", times[kind], peer, times[peer]))
    ours, read = bandwidths(LAYER, figures[LAYER][1])
    one = "one token reads its weights"
    return [*found, compare(one, "W8A8", "GB/s", ours, FLOOR, read, higher_is_better=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few rounds, at most 16 tokens")
    parser.add_argument("--tokens", type=int, nargs="+", help="1 and these numbers of tokens alone")
    parser.add_argument(
        "--avx2", action="store_true", help="as on a CPU that has no more than AVX2"
    )
    parser.add_argument("--threads", type=int, default=1)
    add_json_option(parser)
    options = parser.parse_args()
    if options.avx2 and any(os.environ.get(key) != value for key, value in ONLY_AVX2.items()):
        os.environ.update(ONLY_AVX2)  # read when the libraries start
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.int8_linear", *sys.argv[1:]])
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rounds = {1: 5, 4: 5, 16: 5} if options.quick else {1: 21, 4: 15, 16: 15, 128: 7, 512: 5}
    if options.tokens:
        rounds = {tokens: rounds[tokens] for tokens in rounds if tokens in {1, *options.tokens}}
    figures = {}
    for layer, (columns, rows) in SHAPES.items():
        figures[layer] = measure(columns, rows, rounds)
        print(f"{layer} done", file=sys.stderr, flush=True)
    add_layer(figures)
    limit = ", held to AVX2" if options.avx2 else ""
    print(f"{options.threads} threads, {machine()}{limit}\n")
    print("\n".join([*time_table(figures), "", *bandwidth_table(figures), "", *exactness_table()]))
    write(
        options.json,
        "The exact int8 linear layers of GLM-4.1V-9B's decoder",
        report_rows(figures),
        notes=[f"{options.threads} thread(s){limit}. vLLM's kernel is inexact without VNNI."],
    )


if __name__ == "__main__":
    main()
