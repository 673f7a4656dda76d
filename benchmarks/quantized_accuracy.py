# SPDX-License-Identifier: Apache-2.0
"""Cost of quantization for the trained tiny checkpoint: held-out accuracy, and layer errors.

    OMP_NUM_THREADS=1 python -m benchmarks.quantized_accuracy [--count 1000] [--clips 400] \\
        [--beside FOLDER ...] [--json FILE]

The checkpoint is quantized to each type by the defaults of `glm41v quantize`, and read by
transformers with the published formulas in place of its quantized layers (tests/quant),
which is what an NPU computes but for the rounding of its float16. The float checkpoint goes first,
and last those that other tools made of it (msModelSlim: benchmarks/msmodelslim_reference.py).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import results
from benchmarks.results import ROOT, add_json_option, write
from tests.quant.reference import Checkpoint
from tools.tiny.evaluate import Reader, final_answer, heldout_sets, heldout_videos
from vllm_glm41v_npu.quant.quantizer import TYPES, Request
from vllm_glm41v_npu.quant.quantizer import quantize as quantize

TINY = ROOT / "assets" / "glm41v-tiny"

Row = dict[str, Any]


class QuantizedReader(Reader):
    """Asks a quantized checkpoint."""

    def __init__(self, folder: Path) -> None:
        super().__init__(TINY)
        generation = self.model.generation_config
        self.model = Checkpoint(folder).network()
        self.model.generation_config = generation


def accuracy(reader: Reader, count: int, clips: int) -> Iterator[tuple[str, float]]:
    """Each held-out set and the share of right answers in it."""
    for name, items in heldout_sets(count).items() if count else ():
        replies = list(reader.ask_all([(question, pictures) for question, pictures, _ in items]))
        yield name, share(replies, [answer for _, _, answer in items])
    if clips:
        films = heldout_videos(clips)
        requests = [(question, clip.frames, clip.fps) for question, clip, _ in films]
        replies = list(reader.ask_all_videos(requests))
        yield "clips", share(replies, [answer for _, _, answer in films])


def share(replies: list[str], answers: list[str]) -> float:
    right = [final_answer(reply) == want for reply, want in zip(replies, answers, strict=True)]
    return sum(right) / len(right)


def measure(count: int, clips: int, beside: Sequence[Path]) -> Iterator[Row]:
    """The float checkpoint's row, then one for each type and for each folder."""
    yield {"type": "float", **dict(accuracy(Reader(TINY), count, clips))}
    with tempfile.TemporaryDirectory() as folder:
        for kind in TYPES:
            output = Path(folder) / kind
            started = time.perf_counter()
            report = quantize(Request(TINY, output, kind))
            seconds = time.perf_counter() - started
            errors = [layer.error for layer in report.layers]
            yield {
                "type": kind,
                **dict(accuracy(QuantizedReader(output), count, clips)),
                "median layer error": statistics.median(errors),
                "largest layer error": max(errors),
                "seconds to quantize": seconds,
            }
    for output in beside:
        yield {"type": str(output), **dict(accuracy(QuantizedReader(output), count, clips))}


def show(row: Row, columns: list[str]) -> None:
    cells = [row.get(column, "-") for column in columns]
    texts = [
        cell if isinstance(cell, str) else f"{cell:.1f}" if "seconds" in column else f"{cell:.2%}"
        for column, cell in zip(columns, cells, strict=True)
    ]
    print(f"| {' | '.join(texts)} |", flush=True)


def report_rows(rows: Sequence[Row]) -> Iterator[results.Row]:
    """The same for the report; the float checkpoint is every type's peer."""
    first, *others = rows
    sets = [name for name in first if name != "type"]
    for row in rows:
        for name in sets:
            values = [100 * row[name]]
            beside = ("float", [100 * first[name]]) if row is not first else (None, ())
            yield results.compare(
                f"right answers, {name}",
                row["type"],
                "%",
                values,
                *beside,
                higher_is_better=True,
                type=row["type"],
            )
    for row in others:
        if "median layer error" in row:
            error = [100 * row["median layer error"]]
            yield results.compare("median error of a layer", row["type"], "%", error)
            taken = [row["seconds to quantize"]]
            yield results.compare("quantizing", row["type"], "s", taken)


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy before and after quantization.")
    parser.add_argument("--count", type=int, default=1000, help="written numbers")
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="made by other tools")
    add_json_option(parser)
    args = parser.parse_args()
    rows: list[Row] = []
    columns: list[str] = []
    for row in measure(args.count, args.clips, args.beside):
        rows.append(row)
        if not columns:
            columns = [*row, "median layer error", "largest layer error", "seconds to quantize"]
            print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
        show(row, columns)
    write(args.json, "What quantization costs the tiny checkpoint", list(report_rows(rows)))


if __name__ == "__main__":
    main()
