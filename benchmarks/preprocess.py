# SPDX-License-Identifier: Apache-2.0
"""This package's processing of pictures and videos beside transformers' fast processors.

    python -m benchmarks.preprocess [--rounds 15] [--json FILE]

One thread. Each round runs every contender on every input in turn, so that a machine whose speed
drifts treats all alike. Printed are medians and their range; ratios are taken round by round.
"resize alone" is PyTorch's bicubic kernel on pixels that are in a tensor already: the limit of
anything that gives the same bytes. Pictures are PIL pictures in memory, videos uint8 arrays.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.report.results import Row, compare
from benchmarks.results import add_json_option, machine, spread, write
from vllm_glm41v_npu.processing.grid import PatchGeometry
from vllm_glm41v_npu.processing.image import open_picture, picture_grid, process_picture, resize
from vllm_glm41v_npu.processing.pixel_settings import ImageSettings
from vllm_glm41v_npu.processing.video import DecodedVideo
from vllm_glm41v_npu.processing.video_settings import VideoSettings

GEOMETRY = PatchGeometry()
PICTURES = {"336 x 336": (336, 336), "1024 x 1024": (1024, 1024), "1080p": (1920, 1080)}
PICTURES["4K"] = (3840, 2160)
VIDEOS = {"16 frames of 360p": (640, 360), "16 frames of 720p": (1280, 720)}
FRAMES = 16


@dataclass(frozen=True)
class Case:
    """Calls that each do the whole of one side's work, and the bytes each hands to the engine."""

    ours: Callable[[], int]
    transformers: Callable[[], int]
    resize: Callable[[], int]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def picture_case(width: int, height: int) -> Case:
    from transformers import Glm4vImageProcessor

    limits = ImageSettings().limits
    picture = Image.fromarray(noise(height, width, 3))
    theirs = Glm4vImageProcessor()
    pixels = torch.from_numpy(np.array(picture))
    _, h, w = picture_grid(picture, GEOMETRY, limits)

    def ours() -> int:
        opened = open_picture(picture)
        grid = picture_grid(opened, GEOMETRY, limits)
        patches = torch.empty(grid[1] * grid[2], GEOMETRY.row_size, dtype=torch.uint8)
        process_picture(opened, GEOMETRY, grid, patches)
        return patches.nbytes

    return Case(
        ours,
        lambda: theirs(picture, return_tensors="pt")["pixel_values"].nbytes,
        lambda: resize(pixels, (h * 14, w * 14)).nbytes,
    )


def video_case(width: int, height: int) -> Case:
    from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor
    from transformers.video_utils import VideoMetadata

    frames = noise(FRAMES, height, width, 3)
    seconds = FRAMES / 2
    theirs = Glm4vVideoProcessor()
    rate = {"total_num_frames": FRAMES, "fps": 2.0, "duration": seconds}
    pixels = torch.from_numpy(frames)

    def ours() -> int:
        return DecodedVideo(frames, rate, "").process(VideoSettings(), GEOMETRY).patches.nbytes

    def transformers() -> int:
        metadata = VideoMetadata(**rate)
        done = theirs(videos=[frames], video_metadata=[metadata], return_tensors="pt")
        return done["pixel_values_videos"].nbytes

    _, h, w = DecodedVideo(frames, rate, "").process(VideoSettings(), GEOMETRY).grid
    return Case(
        ours,
        transformers,
        lambda: sum(resize(frame, (h * 14, w * 14)).nbytes for frame in pixels),
    )


def milliseconds(work: Callable[[], int]) -> float:
    begin = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - begin)


def measure(cases: dict[str, Case], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of each contender in each round; a first round warms up."""
    times: dict[str, dict[str, list[float]]] = {
        name: {side: [] for side in vars(case)} for name, case in cases.items()
    }
    for number in range(rounds + 1):
        for name, case in cases.items():
            for side, work in vars(case).items():
                taken = milliseconds(work)
                if number:
                    times[name][side].append(taken)
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    return times


def report(cases: dict[str, Case], times: dict[str, dict[str, list[float]]]) -> list[str]:
    lines = [
        "| | ours, ms | transformers, ms | transformers / ours | bytes | resize alone / ours |",
        "|---|---|---|---|---|---|",
    ]
    for name, case in cases.items():
        ours, theirs, limit = (times[name][side] for side in ("ours", "transformers", "resize"))
        ratio = spread([b / a for a, b in zip(ours, theirs, strict=True)])
        share = statistics.median(b / a for a, b in zip(ours, limit, strict=True))
        fewer = case.transformers() / case.ours()
        lines.append(
            f"| {name} | {spread(ours)} | {spread(theirs)} | {ratio} | {fewer:.0f} times fewer "
            f"| {share:.0%} |"
        )
    return lines


def rows(cases: dict[str, Case], times: dict[str, dict[str, list[float]]]) -> list[Row]:
    """The same for the report."""
    found = []
    for name, case in cases.items():
        ours, theirs = (times[name][side] for side in ("ours", "transformers"))
        found.append(compare("processing", name, "ms", ours, "transformers", theirs))
        sizes = [case.ours() / (1 << 20)], [case.transformers() / (1 << 20)]
        found.append(compare("handed over", name, "MiB", sizes[0], "transformers", sizes[1]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    add_json_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = {name: picture_case(*size) for name, size in PICTURES.items()}
    cases |= {name: video_case(*size) for name, size in VIDEOS.items()}
    times: dict[str, Any] = measure(cases, options.rounds)
    print(f"one thread, {options.rounds} rounds, {machine()}")
    print("\n".join(report(cases, times)))
    write(
        options.json,
        "From a picture or clip in memory to what the engine gets",
        rows(cases, times),
        notes=["One thread."],
    )


if __name__ == "__main__":
    main()
