# SPDX-License-Identifier: Apache-2.0
"""Clips of numbers as video files; writes `assets/videos`.

    python -m tools.tiny.clips assets/videos

`answers.json` there gives, for each file, the first and the last number and the number at each
second that the prompt states.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

import av
import numpy as np
from av.video.stream import VideoStream

from tools.tiny.number_clips import NumberClip, draw_clip, timestamps

# Encoder options of good quality; both write yuv420p.
CODECS = {
    "libx264": {"crf": "18"},
    "mpeg4": {"flags": "+qscale", "global_quality": str(3 * 118)},  # 118: FF_QP2LAMBDA
}
# File name, codec, and the container's format.
EXAMPLES = {
    "numbers.mp4": ("libx264", "mp4"),
    "slow.mp4": ("libx264", "mp4"),
    "numbers.avi": ("mpeg4", "avi"),
}


def write_clip(
    clip: NumberClip, target: Path | IO[bytes], codec: str = "libx264", form: str = "mp4"
) -> None:
    """Encode with H.264 ("libx264") or MPEG-4 part 2 ("mpeg4") into a container of this format."""
    file = str(target) if isinstance(target, Path) else target
    with av.open(file, "w", format=form) as container:
        stream = cast(VideoStream, container.add_stream(codec, clip.fps, CODECS[codec]))
        stream.height, stream.width = clip.frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in clip.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())


def read_frames(source: Path | IO[bytes]) -> tuple[np.ndarray, float]:
    """All frames, uint8 [frames, height, width, 3], and how many there are a second."""
    with av.open(str(source) if isinstance(source, Path) else source, "r") as container:
        rate = container.streams.video[0].average_rate
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    if rate is None or not frames:
        raise ValueError("no frames, or no frame rate, in this file")
    return np.stack(frames), float(rate)


def through_file(clip: NumberClip, codec: str = "libx264", form: str = "mp4") -> NumberClip:
    """The clip as it comes back from a file."""
    file = io.BytesIO()
    write_clip(clip, file, codec, form)
    file.seek(0)
    frames, rate = read_frames(file)
    if len(frames) != len(clip.frames) or rate != clip.fps:
        raise ValueError(f"{len(frames)} frames at {rate} a second came back from {codec}")
    return NumberClip(frames, clip.fps, clip.shown)


def answers(clip: NumberClip) -> dict[str, str]:
    """The number for "first", for "last", and for each second that the prompt states."""
    stated = timestamps(len(clip.frames), clip.fps)
    ends = {kind: clip.answer(kind) for kind in ("first", "last")}
    return ends | {str(second): clip.at(second) for second in stated}


def first_clip(seed: int, fits: Callable[[NumberClip], bool]) -> NumberClip:
    """The first held-out clip of this seed that fits."""
    index = 0
    while not fits(clip := draw_clip("heldout", seed, index)):
        index += 1
    return clip


def write_examples(folder: Path) -> dict[str, dict[str, str]]:
    """Write the files and their index; returns the index."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = {
        "numbers.mp4": first_clip(2, lambda c: c.fps == 8 and c.seconds == 4 == len(c.shown)),
        "slow.mp4": first_clip(3, lambda c: c.fps == 1 and c.seconds == 6 == 2 * len(c.shown)),
        "numbers.avi": first_clip(3, lambda c: c.fps == 5 and c.seconds == 4 and len(c.shown) == 3),
    }
    for name, clip in clips.items():
        write_clip(clip, folder / name, *EXAMPLES[name])
    index = {name: answers(clip) for name, clip in clips.items()}
    (folder / "answers.json").write_text(json.dumps(index, indent=2) + "\n")
    return index


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the example clips.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("assets/videos"))
    print(json.dumps(write_examples(parser.parse_args().folder), indent=2))


if __name__ == "__main__":
    main()
