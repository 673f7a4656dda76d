# SPDX-License-Identifier: Apache-2.0
"""How frames are read: their times where a header does not say, which way up, which decoder."""

from __future__ import annotations

import random
from collections.abc import Callable
from io import BytesIO

import av
import numpy as np
import pytest

from tests.clips import Clip, moving_shapes
from tests.engines import decode
from tests.processing.oracle import GEOMETRY
from tests.processing.video_files import FORMATS, fragmented, recorded, with_matrix
from tests.processing.video_oracle import SETTINGS
from vllm_glm41v_npu.processing import video_reader
from vllm_glm41v_npu.processing.encoded_video import BACKENDS, EncodedVideo
from vllm_glm41v_npu.processing.video_reader import upright


def greys(video: EncodedVideo, wanted: list[int]) -> list[int]:
    return [round(float(frame.mean())) for frame in video._decode(wanted)]


# --- times ---


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("live", [True, False])
def test_a_clip_as_browsers_record_it(live: bool, backend: str) -> None:
    """1000 frames a second are believed, and a clip of 10 s becomes one still picture."""
    rng = random.Random(0)
    times = [round(i * 100 / 3 + rng.uniform(-15, 15) * (i > 0)) for i in range(300)]
    video = EncodedVideo(recorded(times, live), {"backend": backend})
    found = video.process(SETTINGS, GEOMETRY)
    assert video.timeline.total_num_frames == 300
    assert video.timeline.fps == pytest.approx(30, abs=0.2)
    assert found.grid[0] == 10
    assert found.timestamps == list(range(10))


def test_frames_are_taken_by_their_times() -> None:
    """A screen recording with pauses: frames are counted as if they came evenly."""
    times = [*range(0, 2000, 40), *range(8000, 8400, 40), 12_000]
    video = EncodedVideo(recorded(times))
    wanted = video._wanted(SETTINGS, True)
    taken = [times[index] for index in wanted]
    assert taken == [0, 520, 1000, 1520, 8000, 12_000]
    assert video.process(SETTINGS, GEOMETRY).timestamps == [0, 1, 8]
    decoded = greys(video, wanted)
    assert np.abs(np.subtract(decoded, [index % 256 for index in wanted])).max() <= 3


def test_a_clip_without_a_table_of_frames() -> None:
    """A fragmented MP4 does not say how many frames it has."""
    video = EncodedVideo(fragmented())
    assert (video.timeline.total_num_frames, video.timeline.fps) == (12, 8)


# --- upright ---


QUARTERS: dict[
    str, tuple[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]]
] = {  # the matrix, and how numpy turns and mirrors
    "upright": ((1, 0, 0, 1), lambda frame: frame),
    "right": ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),
    "around": ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
    "left": ((0, -1, 1, 0), np.rot90),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "upside down": ((1, 0, 0, -1), np.flipud),
    "diagonal": ((0, 1, 1, 0), lambda frame: frame.swapaxes(0, 1)),
    "other diagonal": ((0, -1, -1, 0), lambda frame: np.rot90(frame, 2).swapaxes(0, 1)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", QUARTERS)
def test_a_clip_is_shown_as_its_matrix_says(kind: str, backend: str) -> None:
    """A phone's clip lies on its side, or one of its front camera is turned upside down."""
    matrix, turned = QUARTERS[kind]
    good = Clip(8, 4, size=(112, 84)).encode()
    (plain,) = EncodedVideo(good)._decode([0])
    video = EncodedVideo(with_matrix(good, *matrix), {"backend": backend})
    (found,) = video._decode([0])
    assert np.array_equal(found, turned(plain))
    assert video.process(SETTINGS, GEOMETRY).grid == ((1, 8, 6) if matrix[1] else (1, 6, 8))


@pytest.mark.parametrize("kind", ["right", "around", "left"])
def test_turned_clips_are_as_in_opencv(kind: str) -> None:
    """Turned the other way round than in transformers, which reads videos with OpenCV."""
    data = with_matrix(Clip(8, 4, size=(112, 84)).encode(), *QUARTERS[kind][0])
    (found,) = EncodedVideo(data)._decode([0])
    assert np.array_equal(found, decode(data)[0][0])


def test_odd_angles_are_rounded_to_a_quarter() -> None:
    frame = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    slightly = [65_000, 3_000, 0, -3_000, 65_000, 0, 0, 0, 1 << 30]
    assert np.array_equal(upright(frame, slightly), frame)
    assert np.array_equal(upright(frame, [0] * 9), frame)
    assert np.array_equal(upright(frame, None), frame)


# --- codings ---


@pytest.mark.parametrize("backend", BACKENDS)
def test_av1(backend: str) -> None:
    """Current phones and browsers record AV1, which OpenCV's wheel cannot decode."""
    assert EncodedVideo(FORMATS["av1"](), {"backend": backend}).process(SETTINGS, GEOMETRY).grid


def test_a_coding_without_a_decoder_is_named() -> None:
    """The answer says that the file is damaged."""
    data = bytearray(Clip(8, 4, "mpeg4", "avi").encode())
    for name in (b"FMP4", b"mp4v", b"XVID"):
        data = data.replace(name, b"ZZZZ")
    with pytest.raises(ValueError, match="coding that has no decoder here"):
        EncodedVideo(bytes(data)).process(SETTINGS, GEOMETRY)


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv420p10le"])
@pytest.mark.parametrize(("space", "range_"), [(1, 1), (1, 2), (5, 1), (9, 2), (2, 0)])
def test_colours_are_as_in_opencv(pixels: str, space: int, range_: int) -> None:
    """Colours of a clip that is tagged BT.709, BT.2020, full range, or has 10 bits."""
    data = tagged(pixels, space, range_)
    found = np.stack(list(EncodedVideo(data)._decode([0, 1])))
    assert np.array_equal(found, decode(data)[0])


def test_colours_that_cannot_be_converted() -> None:
    """A coding of colours that swscale does not know is the server's error."""
    with pytest.raises(ValueError, match="yuv420p, colour space 14 cannot be converted to RGB"):
        EncodedVideo(tagged("yuv420p", 14, 1)).process(SETTINGS, GEOMETRY)


def tagged(pixels: str, space: int, range_: int) -> bytes:
    """Two frames whose header names a colour space and a range, by FFmpeg's numbers."""
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=8)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        stream.codec_context.colorspace, stream.codec_context.color_range = space, range_
        for frame in moving_shapes(2, (64, 48)):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame).reformat(format=pixels)))
        out.mux(stream.encode())
    return buffer.getvalue()


def test_large_frames_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 16 threads holds a frame of 8K."""
    data = Clip(8, 4).encode()
    kinds = []
    for large in (10**9, 100):
        monkeypatch.setattr(video_reader, "_LARGE_FRAME", large)
        with EncodedVideo(data)._opened() as reader:
            kinds.append(str(reader._stream.thread_type))
    assert kinds[0] != kinds[1]
    assert "SLICE" in kinds[1] and "FRAME" not in kinds[1]


def test_decoders_do_not_log() -> None:
    """A decoder's thread that logs, as torchvision 0.25 lets it, waits for ever for one that closes
    the decoder with Python's lock in hand."""
    before = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        EncodedVideo(Clip(8, 4).encode()).process(SETTINGS, GEOMETRY)
        assert av.logging.get_level() is None
    finally:
        av.logging.set_level(before)
