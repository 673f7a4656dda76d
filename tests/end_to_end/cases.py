# SPDX-License-Identifier: Apache-2.0
"""The requests that every lane answers."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tests.clips import Clip, irregular_times
from tests.engines import Message
from vllm_glm41v_npu.cli.ask import Video, conversation


def picture(height: int, width: int, seed: int) -> Image.Image:
    """Smooth blobs with noise, so that resizing and position both matter."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = smooth + rng.integers(-20, 21, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def long_text(count: int) -> str:
    """Text of about `count` tokens; digits are one token each in the tiny vocabulary."""
    return "".join(str(digit) for digit in np.random.default_rng(7).integers(0, 10, count))


PICTURES = [picture(100, 150, 1), picture(224, 90, 2), picture(61, 300, 3)]
QUESTION = "What number is written in the picture?"
FIRST = "Which number comes first?"
VIDEOS = [
    Video(Clip(12, 61, size=(112, 84)).encode(1)),
    Video(Clip(25, 62, "mpeg4", "avi", (90, 150)).encode(2), "video/avi"),
    # So large that its frames take several steps.
    Video(Clip(10, 110, size=(336, 196), times=irregular_times(110, 8.0)).encode(3)),
]
CASES: dict[str, list[Message]] = {
    "text": conversation([], "Who are you?"),
    "one-picture": conversation(PICTURES[:1], QUESTION),
    "three-pictures": conversation(PICTURES, "What numbers are in the pictures?"),
    "long-text": conversation([], long_text(4000)),
    "long-with-pictures": conversation(PICTURES[1:], long_text(2500)),
    "video": conversation(VIDEOS[:1], FIRST),
    "two-videos": conversation(VIDEOS[:2], FIRST),
    # Videos first: transformers writes a video's tokens over those of a picture before it.
    "video-and-pictures": conversation([VIDEOS[1], *PICTURES[:2]], QUESTION),
    "long-video": conversation(VIDEOS[2:], long_text(2200)),
}
