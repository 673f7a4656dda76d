# SPDX-License-Identifier: Apache-2.0
"""A video file in memory, read by FFmpeg (PyAV): its header, its times, its frames one by one.

FFmpeg is told the format, and gets these bytes and nothing else: no file, no socket. Frames come in
the order in which players show them, turned and mirrored as the file says. Their bytes are those of
OpenCV, which transformers reads videos with.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm_glm41v_npu.processing.containers import FORMATS
from vllm_glm41v_npu.processing.decode_time import DecodeTime, Source, TooMuchWork

MAX_FRAMES = 500_000
"""The most frames of a file, over 4 hours at 30 a second; more take the decoder a day."""
_MOST_ERRORS = 1000  # packets in a row that cannot be decoded
_LARGE_FRAME = 3840 * 2160  # larger frames are not decoded side by side
_READ_SIZE = 1 << 16  # bytes that FFmpeg asks for at a time
_SAME_TIME = 1e-6  # seconds


class DecodeError(ValueError):
    """The fault of a file, as the end of a sentence in brackets."""


@dataclass(frozen=True)
class Header:
    """The facts in a file's header, before anything is decoded.

    codec: FFmpeg's name of the coding.
    width, height: pixels of a frame as it is stored.
    fps: frames a second, or 0 where it is not stated.
    frames: their number, or 0 where it is not stated.
    seconds: the length, or 0 where it is not stated.
    """

    codec: str
    width: int
    height: int
    fps: float
    frames: int
    seconds: float


@dataclass(frozen=True)
class FrameTimes:
    """The times of frames, by their packets.

    count: number of frames.
    start: the second of the first one.
    seconds: the second of each from there, ascending; empty where the file has none (raw H.264).
    """

    count: int
    start: float
    seconds: tuple[float, ...]


class VideoReader:
    """Opens a file; close it with ``with``.

    Args:
        data: the file.
        demuxer: one of `FORMATS`.
        max_pixels: the most of a frame; the decoder itself keeps to it.

    Raises:
        DecodeError: It cannot be opened, or has no video that can be decoded here.
        TooMuchWork: Opening it took too long. Later steps raise it, too.
    """

    def __init__(self, data: bytes, demuxer: str, max_pixels: int) -> None:
        self._time = DecodeTime()
        limits = {"max_pixels": str(max_pixels)}
        rules = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none"}
        av = _pyav()
        try:
            self._container = av.open(
                Source(data, self._time),
                format=demuxer,
                options=rules | limits,
                io_open=_refuse_to_open,
                buffer_size=_READ_SIZE,
                metadata_errors="replace",
            )
        except (av.error.FFmpegError, ValueError, IndexError, OSError) as error:
            self._time.check()
            if isinstance(error, (DecodeError, MemoryError)):
                raise
            raise DecodeError(str(getattr(error, "strerror", None) or error)) from error
        try:
            self._time.check()
            self._stream = self._find_stream()
            self._stream.codec_context.options = limits
            small = self._stream.width * self._stream.height <= _LARGE_FRAME
            self._stream.thread_type = "AUTO" if small else "SLICE"
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    def _find_stream(self) -> Any:
        """Return the stream of the video; a cover picture of a song is none."""
        streams = self._container.streams.video
        moving = [stream for stream in streams if not stream.disposition & _cover_picture()]
        if not moving:
            raise DecodeError("it has no video stream")
        stream = next((s for s in moving if s.codec_context is not None), None)
        if stream is None:
            raise DecodeError("its video is in a coding that has no decoder here")
        return stream

    def header(self) -> Header:
        stream = self._stream
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        seconds = (self._container.duration or 0) / 1e6
        if seconds <= 0 and stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        codec = stream.codec_context.codec.canonical_name
        frames, seconds = max(0, stream.frames), max(0.0, seconds)
        return Header(codec, stream.width, stream.height, fps, frames, seconds)

    def times(self) -> FrameTimes:
        """Return the time of each frame, without decoding any.

        Raises:
            TooMuchWork: There are more than `MAX_FRAMES`.
        """
        count, marks = 0, []
        for packet in self._packets():
            if packet.size == 0:
                continue
            count += 1
            if packet.pts is not None:
                marks.append(packet.pts)
            if count > MAX_FRAMES:
                raise TooMuchWork(f"it has over {MAX_FRAMES:,} frames. Send a part of it")
        if len(set(marks)) < max(2, count // 2):
            return FrameTimes(count, 0.0, ())
        marks.sort()
        base = float(self._stream.time_base)
        return FrameTimes(
            len(marks), marks[0] * base, tuple((mark - marks[0]) * base for mark in marks)
        )

    def frames(
        self, wanted: Sequence[int], times: FrameTimes | None = None
    ) -> Iterator[np.ndarray]:
        """Decode the frames ``wanted``, ascending indices, until the file ends.

        Frames are found by their ``times`` where given, else they are counted.

        Yields:
            uint8 RGB [height, width, 3].
        """
        rest = iter(wanted)
        following = next(rest, None)
        picture = _Converter()
        for count, frame in enumerate(self._decoded()):
            if following is None:
                return
            if (count if times is None else self._index(frame, times, count)) < following:
                continue
            yield picture.of(frame)
            following = next(rest, None)

    def _index(self, frame: Any, times: FrameTimes, count: int) -> int:
        if frame.pts is None:
            return count
        second = float(frame.pts * self._stream.time_base) - times.start
        return bisect_left(times.seconds, second - _SAME_TIME)

    def _packets(self) -> Iterator[Any]:
        """Yield the packets until the file ends, or is too damaged to go on."""
        error_kind = _pyav().error.FFmpegError
        packets = self._container.demux(self._stream)
        while True:
            self._time.check()
            try:
                packet = next(packets, None)
            except (TooMuchWork, MemoryError):
                raise
            except (error_kind, ValueError, IndexError, OSError):
                return
            if packet is None:
                return
            yield packet

    def _decoded(self) -> Iterator[Any]:
        error_kind = _pyav().error.FFmpegError
        errors = 0
        for packet in self._packets():
            try:
                frames = packet.decode()
            except MemoryError:
                raise
            except EOFError:
                return
            except error_kind:
                errors += 1
                if errors > _MOST_ERRORS:
                    return
                continue
            errors = 0 if frames else errors
            yield from frames


class _Converter:
    """Converts decoded frames to RGB as OpenCV does: frames of more than 8 bits by way of BGR."""

    def __init__(self) -> None:
        self._reformatter = _pyav().video.reformatter.VideoReformatter()

    def of(self, frame: Any) -> np.ndarray:
        is_deep = any(component.bits > 8 for component in frame.format.components)
        kind = "bgr24" if is_deep else "rgb24"
        try:
            converted = self._reformatter.reformat(frame, format=kind, interpolation="BICUBIC")
            pixels = converted.to_ndarray()
        except MemoryError:
            raise
        except (_pyav().error.FFmpegError, ValueError) as error:
            colours = f"{frame.format.name}, colour space {frame.colorspace}"
            raise DecodeError(f"its {colours} cannot be converted to RGB") from error
        if is_deep:
            import cv2

            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        return upright(pixels, _display_matrix(frame))


def upright(pixels: np.ndarray, matrix: Sequence[int] | None) -> np.ndarray:
    """Return a frame as players show it.

    Args:
        pixels: [height, width, 3].
        matrix: a b u, c d v, x y w of ISO 14496-12: a point (p, q) is shown at
            (a p + c q, b p + d q). Angles between quarters are rounded to one.
    """
    if matrix is None:
        return pixels
    a, b, _, c, d = matrix[:5]
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, (a, d) = pixels.swapaxes(0, 1), (c, b)
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _display_matrix(frame: Any) -> list[int] | None:
    for part in frame.side_data:
        if part.type.name == "DISPLAYMATRIX":
            return np.frombuffer(bytes(part), np.int32).tolist()
    return None


def _refuse_to_open(url: str, flags: int, options: object) -> Any:
    raise DecodeError("it names other files, which are not opened")


def _cover_picture() -> Any:
    return _pyav().stream.Disposition.attached_pic


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise ValueError(
            "Videos are decoded by PyAV, which is not installed here: pip install av."
        ) from error
    # With logging on, as torchvision leaves it, closing a decoder can wait for ever: it holds
    # Python's lock and waits for a thread that logs, which waits for the lock.
    av.logging.set_level(None)
    return av
