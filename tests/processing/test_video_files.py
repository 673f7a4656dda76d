# SPDX-License-Identifier: Apache-2.0
"""Files that are sent as videos: of every format, of none, damaged, lying, and hostile."""

from __future__ import annotations

import base64
import os
import random
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.clips import Clip, moving_shapes
from tests.processing.oracle import GEOMETRY
from tests.processing.video_files import (
    FORMATS,
    SMALL,
    disguises,
    gif,
    with_frames_elsewhere,
    with_one_byte_frames,
    with_samples,
)
from tests.processing.video_oracle import SETTINGS
from vllm_glm41v_npu.processing import decode_time, encoded_video, video_reader
from vllm_glm41v_npu.processing.budget import RequestEnded
from vllm_glm41v_npu.processing.connector import Glm41vMediaConnector
from vllm_glm41v_npu.processing.containers import format_of
from vllm_glm41v_npu.processing.encoded_video import BACKENDS, EncodedVideo

SECRET = "secret.mp4"


def process(data: bytes, backend: str = BACKENDS[0]) -> list[int]:
    """The grid."""
    return list(EncodedVideo(data, {"backend": backend}).process(SETTINGS, GEOMETRY).grid)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", FORMATS)
def test_formats_that_are_opened(kind: str, backend: str) -> None:
    """A format that people send is refused by its first bytes, or read as another."""
    data = FORMATS[kind]()
    assert format_of(data) is not None
    assert process(data, backend)[0] >= 1
    assert format_of(data[:400]) == format_of(data)


DISGUISES = disguises(SECRET, 45_004)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", DISGUISES)
def test_what_is_no_video_is_not_opened(
    kind: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text as data:video/mp4 opens videos below the working directory, or binds ports and holds
    a thread for 40 s."""
    (tmp_path / SECRET).write_bytes(Clip(8, 12, size=SMALL).encode())
    monkeypatch.chdir(tmp_path)
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    begun = time.monotonic()
    with pytest.raises(ValueError, match="cannot be decoded"):
        process(DISGUISES[kind], backend)
    assert time.monotonic() - begun < 2
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before


def test_vllms_own_loaders_guess_no_format() -> None:
    """Where the server was started with a loader of vLLM's, a text reaches FFmpeg after all."""
    for backend in ("opencv", "pyav"):
        options = {"video": {"video_backend": "opencv", "backend": backend}}
        connector = Glm41vMediaConnector(options, server_video_backend="opencv")
        for data in [*DISGUISES.values(), gif(), FORMATS["mpegts"]()]:
            url = "data:video/mp4;base64," + base64.b64encode(data).decode()
            if format_of(data) == "mov":
                continue  # FFmpeg finds no video in it
            with pytest.raises(ValueError, match="no format that this server's loader"):
                connector.fetch_video(url, video_processor="Glm4vVideoProcessor")


def test_a_file_cannot_name_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A MOV whose frames lie in another file shows those, or opens a connection."""
    asked: list[str] = []

    def record(url: str, flags: int, options: object) -> Any:
        asked.append(url)
        raise FileNotFoundError

    monkeypatch.setattr(video_reader, "_refuse_to_open", record)
    data = with_frames_elsewhere(Clip(8, 12, container="mov", size=SMALL).encode(), "/x/secret.mov")
    with pytest.raises(ValueError, match="no frame of its"):
        process(data)
    assert not asked
    allowed = {"enable_drefs": "1", "use_absolute_path": "1"}
    with pytest.raises(FileNotFoundError):
        av.open(BytesIO(data), format="mov", options=allowed, io_open=record)
    assert asked == ["secret.mov"]  # so the file does name another


# --- damaged ---


@pytest.mark.parametrize("kind", FORMATS)
def test_flipped_bytes_give_a_video_or_a_refusal(kind: str) -> None:
    """A crash, a hang, or an error that the server answers with 500."""
    good = FORMATS[kind]()
    rng = random.Random(kind)
    for attempt in range(60):
        bad = bytearray(good)
        for _ in range(rng.choice([1, 3, 20, 150])):
            place = rng.randrange(min(len(bad), rng.choice([64, 600, len(bad)])))
            bad[place] = rng.randrange(256)
        data = bytes(bad[: rng.randrange(len(bad))] if attempt % 5 == 4 else bad)
        begun = time.monotonic()
        try:
            grid = process(data)
        except ValueError as error:
            assert "The video" in str(error)
        else:
            assert grid[0] >= 1
        assert time.monotonic() - begun < 10


def test_metadata_in_another_alphabet() -> None:
    """A title in Latin-1 or GB 18030, as old cameras write it, fails the whole file."""
    data = Clip(8, 12, "mpeg4", "avi", SMALL).encode()
    place = data.index(b"Lavf")
    assert process(data[:place] + b"\xe9\xff" + data[place + 2 :])


# --- lying and expensive ---


def test_more_frames_than_there_are() -> None:
    """A header of 12 bytes takes gigabytes before anything is decoded."""
    good = Clip(8, 32).encode()
    begun = time.monotonic()
    for count in (20_000_000, 2**32 - 1):
        with pytest.raises(ValueError, match="claims more frames"):
            process(with_samples(good, count))
    for count in (1_000_000, 100_000):
        with pytest.raises(ValueError, match="over 500,000 frames|no frame of its"):
            process(with_one_byte_frames(good, count))
    assert time.monotonic() - begun < 10


def with_sound(codec: str, seconds: int) -> bytes:
    """A MOV whose sound is longer than its pictures."""
    buffer = BytesIO()
    with av.open(buffer, "w", format="mov") as out:
        video, sound = out.add_stream("libx264", rate=8), out.add_stream(codec, rate=48_000)
        assert isinstance(video, av.VideoStream) and isinstance(sound, av.AudioStream)
        video.width, video.height = SMALL
        sound.layout = "mono"
        for pixels in moving_shapes(12, SMALL):
            out.mux(video.encode(av.VideoFrame.from_ndarray(pixels)))
        second = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.int16), "s16", "mono")
        second.sample_rate = 48_000
        for index in range(seconds):
            second.pts = index * 48_000
            out.mux(sound.encode(second))
        out.mux(video.encode())
        out.mux(sound.encode())
    return buffer.getvalue()


def test_sound_that_is_not_compressed() -> None:
    """Two minutes of a camera's sound, 5.8 million samples, are refused; or a lie is not."""
    data = with_sound("pcm_s16le", 120)
    assert process(data)[0] == 2
    place = data.index(b"soun")
    chunks = data.index(b"stsc", place) + 12
    edited = bytearray(data)
    edited[chunks + 4 : chunks + 8] = b"\xff\xff\xff\xff"
    with pytest.raises(ValueError, match="claims more frames or sound"):
        process(bytes(edited))


def test_frames_of_more_pixels_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The header says a small size, and the first frame is of another."""
    monkeypatch.setattr(encoded_video, "MAX_FRAME_PIXELS", 64 * 48)
    small, large = (Clip(8, 12, container="h264", size=size).encode() for size in (SMALL, (96, 80)))
    assert process(small)
    with pytest.raises(ValueError, match="no frame of its h264|pixels"):
        process(large)
    decoded = EncodedVideo(small + large)._decode(range(24))
    assert {frame.shape for frame in decoded} == {(*SMALL, 3)}


def test_time_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 100,000 frames holds a thread for as long as it likes."""
    monkeypatch.setenv(decode_time.SECONDS_VARIABLE, "1")
    monkeypatch.setattr(decode_time, "monotonic", iter(range(10**6)).__next__)
    with pytest.raises(ValueError, match="was not decoded: it was not ready within 1 s"):
        process(Clip(8, 12, size=SMALL).encode())
    monkeypatch.setenv(decode_time.SECONDS_VARIABLE, "long")
    with pytest.raises(ValueError, match="SECONDS is 'long'; expected seconds, a whole number"):
        process(Clip(8, 12, size=SMALL).encode())


def test_out_of_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without memory answers that the file is damaged."""

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(video_reader._Converter, "of", fail)
    with pytest.raises(ValueError, match="the server is out of memory"):
        process(Clip(8, 12, size=SMALL).encode())


@pytest.mark.parametrize("most", [1, 3, 30])
def test_a_client_that_has_left_ends_its_decode(
    most: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The thread decodes on for nobody."""
    calls = 0

    def check_alive() -> None:
        nonlocal calls
        calls += 1
        if calls > most:
            raise RequestEnded

    monkeypatch.setattr(decode_time, "check_alive", check_alive)
    with pytest.raises(RequestEnded):
        process(Clip(8, 120, size=SMALL).encode())
    assert calls <= most + 5
    assert "Traceback" not in capfd.readouterr().err
