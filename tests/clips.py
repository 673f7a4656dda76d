# SPDX-License-Identifier: Apache-2.0
"""Real encoded clips of moving shapes, made by FFmpeg's encoders through PyAV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
from PIL import Image

TICKS = 90_000  # of a second, for frames at irregular times


@dataclass(frozen=True)
class Clip:
    """How a clip is encoded; ``times`` are the seconds of its frames, instead of ``fps``."""

    fps: float
    frames: int
    codec: str = "libx264"
    container: str = "mp4"
    size: tuple[int, int] = (64, 48)  # width, height
    times: tuple[float, ...] | None = None

    def encode(self, seed: int = 0) -> bytes:
        """The bytes of the file."""
        buffer = BytesIO()
        with av.open(buffer, "w", format=self.container) as container:
            rate = Fraction(self.fps).limit_denominator(1001)
            stream = container.add_stream(self.codec, rate=rate)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height = self.size
            stream.pix_fmt = "yuv420p"
            if self.times is not None:
                stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
            for index, pixels in enumerate(moving_shapes(self.frames, self.size, seed)):
                frame = av.VideoFrame.from_ndarray(pixels)
                if self.times is not None:
                    frame.time_base = Fraction(1, TICKS)
                    frame.pts = round(self.times[index] * TICKS)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return buffer.getvalue()


def moving_shapes(count: int, size: tuple[int, int], seed: int = 0) -> Iterator[np.ndarray]:
    """uint8 [height, width, 3]: a textured picture that drifts, and a square that runs over it."""
    rng = np.random.default_rng([seed, count])
    width, height = size
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    ground = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    for index in range(count):
        frame = np.roll(ground, (index, 2 * index), axis=(0, 1)).copy()
        left, top = (5 * index) % max(1, width - 12), (3 * index) % max(1, height - 12)
        frame[top : top + 12, left : left + 12] = (index * 37 % 256, 255 - index * 11 % 256, 40)
        yield frame


def audio_only() -> bytes:
    """An MP4 of a second of silence, with no video stream."""
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 16_000
        for index in range(16):
            silence.pts = index * 1024
            container.mux(stream.encode(silence))
        container.mux(stream.encode())
    return buffer.getvalue()


def with_header_fps(data: bytes, factor: int) -> bytes:
    """The MP4 with its media time scale multiplied, so that every duration is that much shorter."""
    edited = bytearray(data)
    for box in (b"mvhd", b"mdhd"):
        place = data.index(box) + 4
        version = data[place]
        scale = place + (20 if version == 1 else 12)
        ticks = int.from_bytes(edited[scale : scale + 4], "big") * factor
        edited[scale : scale + 4] = ticks.to_bytes(4, "big")
    return bytes(edited)


def irregular_times(count: int, seconds: float, seed: int = 0) -> tuple[float, ...]:
    """Ascending times from 0 of a variable frame rate."""
    steps = np.random.default_rng(seed).uniform(0.2, 1.8, count)
    times: Sequence[float] = (steps.cumsum() - steps[0]) / steps.sum() * seconds
    return tuple(float(time) for time in times)
