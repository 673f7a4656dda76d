# SPDX-License-Identifier: Apache-2.0
"""Peak memory and time of a long clip, from the file's bytes to what the engine gets.

    python -m benchmarks.video_memory [--seconds 300] [--width 1920] [--height 1080] [--json FILE]

Each side runs in a process of its own on the same H.264 file, which is made first: this package,
and what vLLM's in-tree class does (vLLM's loader, then transformers' processor). Printed is how far
the peak of resident memory rose above where it stood with everything imported and the file read.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report.results import compare
from benchmarks.results import ROOT, add_json_option, machine, write
from benchmarks.sides import IN_TREE, OURS, variables

SIDES = (OURS, IN_TREE)
FPS = 2


def write_clip(path: Path, seconds: int, width: int, height: int) -> None:
    """A panning texture; two frames a second, all of which are kept."""
    import av

    rng = np.random.default_rng(0)
    ground = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    ground = ground.repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = ground.shape[1], ground.shape[0]
        stream.pix_fmt, stream.options = "yuv420p", {"preset": "ultrafast"}
        for index in range(seconds * FPS):
            frame = av.VideoFrame.from_ndarray(np.roll(ground, 4 * index, axis=1))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def ours(data: bytes) -> list[int]:
    from vllm_glm41v_npu.processing.encoded_video import EncodedVideo
    from vllm_glm41v_npu.processing.grid import PatchGeometry
    from vllm_glm41v_npu.processing.video_settings import VideoSettings

    return list(EncodedVideo(data).process(VideoSettings(), PatchGeometry()).grid)


def in_tree(data: bytes) -> list[int]:
    from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor
    from transformers.video_utils import VideoMetadata
    from vllm.multimodal.video import DynamicVideoBackend

    frames, found = DynamicVideoBackend.load_bytes(data)
    sample = found.pop("do_sample_frames")
    done = Glm4vVideoProcessor()(
        videos=[frames],
        video_metadata=[VideoMetadata(**found)],
        do_sample_frames=sample,
        return_tensors="pt",
    )
    (grid,) = done["video_grid_thw"].tolist()
    return grid


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(side: str, path: Path) -> dict[str, Any]:
    """Figures of this process."""
    data = path.read_bytes()
    work: Any = ours if side == OURS else in_tree
    work(_warm_up())
    before, begin = peak_mib(), time.perf_counter()
    grid = work(data)
    taken = time.perf_counter() - begin
    return {"mib": peak_mib() - before, "seconds": taken, "grid": grid}


def _warm_up() -> bytes:
    """A small clip, so that what is imported late is there before anything is counted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(path, 2, 64, 64)
        return path.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--width", type=int, default=1920)
    parser.add_argument("--height", type=int, default=1080)
    add_json_option(parser)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child[0], Path(options.child[1]))))
        return
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(path, options.seconds, options.width, options.height)
        size = f"{options.width} x {options.height}"
        print(f"{options.seconds} s of {size}, {options.seconds * FPS} frames kept, {machine()}")
        print("| | peak above the start | time | grid |\n|---|---|---|---|")
        for side in SIDES:
            command = [sys.executable, "-m", "benchmarks.video_memory", "--child", side, str(path)]
            quiet = variables(side) | {"VLLM_LOGGING_LEVEL": "ERROR"}
            done = subprocess.run(
                command, env=quiet, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
            )
            found[side] = one = json.loads(done.stdout.splitlines()[-1])
            mib, seconds = one["mib"], one["seconds"]
            print(f"| {side} | {mib:,.0f} MiB | {seconds:.1f} s | {one['grid']} |", flush=True)
    case = f"{options.seconds} s of {size}"
    rows = [
        compare(what, case, unit, [found[OURS][key]], IN_TREE, [found[IN_TREE][key]])
        for key, what, unit in (("mib", "peak memory", "MiB"), ("seconds", "processing", "s"))
    ]
    write(options.json, "Processing of a long clip, from its file", rows)


if __name__ == "__main__":
    main()
