# SPDX-License-Identifier: Apache-2.0
"""Facts that are told of files before and while they are decoded: memory, sides, formats, times."""

from __future__ import annotations

from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tests.clips import Clip
from tests.processing.oracle import GEOMETRY
from vllm_glm41v_npu.processing import prefetch
from vllm_glm41v_npu.processing.containers import format_of
from vllm_glm41v_npu.processing.encoded_video import EncodedVideo
from vllm_glm41v_npu.processing.mp4_tables import claims_too_much
from vllm_glm41v_npu.processing.picture_file import plan_picture
from vllm_glm41v_npu.processing.video_reader import FrameTimes, VideoReader


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_the_memory_of_a_progressive_jpeg() -> None:
    """Guards the coefficients, which its decoder holds until the last scan."""
    picture = Image.new("RGB", (64, 48))
    plain, progressive = (
        plan_picture(saved(picture, "JPEG", progressive=choice)).peak for choice in (False, True)
    )
    assert progressive - plain == 2 * 3 * 64 * 48


def test_a_picture_on_its_side() -> None:
    """Guards photos, which phones store as the sensor saw them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.new("RGB", (64, 48)), "JPEG", exif=exif)
    assert plan_picture(data).decode().size == (48, 64)


def test_transparency_is_laid_on_white() -> None:
    """Guards drawings and formulas, which are black on nothing."""
    data = saved(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "PNG")
    assert plan_picture(data).decode().getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    "data", [b"#EXTM3U\n/etc/passwd", b"ffconcat version 1.0\n", b"v=0\r\no=- 0 0", b"<?xml ?>"]
)
def test_lists_of_other_files_are_no_videos(data: bytes) -> None:
    """Guards files and hosts that FFmpeg would open for a caller."""
    assert format_of(data) is None


def test_samples_of_all_tracks_count() -> None:
    """Guards a claim that is spread over several tracks."""
    track = b"trak" + b"stsz" + bytes(8) + (3_000_000).to_bytes(4, "big")
    for tracks, expected in ((1, False), (2, True)):
        tables = track * tracks
        data = (8 + len(tables)).to_bytes(4, "big") + b"moov" + tables
        assert claims_too_much(data) is expected


def test_frames_by_their_times() -> None:
    """Guards clips of no steady rate: each frame is the one of its second."""
    reader: Any = object.__new__(VideoReader)
    reader._stream = SimpleNamespace(time_base=0.1)
    times = FrameTimes(3, 1.0, (0.0, 0.5, 2.0))
    for place, pts in enumerate((10, 15, 30)):
        assert reader._index(SimpleNamespace(pts=pts), times, 7) == place
    assert reader._index(SimpleNamespace(pts=None), times, 7) == 7


def test_the_memory_of_a_decoder() -> None:
    """Guards the frames that a decoder holds beside what stays of a video."""
    from vllm_glm41v_npu.processing import encoded_video

    settings = encoded_video.VideoSettings()
    peak, held = EncodedVideo(Clip(10, 8, size=(64, 48)).encode()).cost(settings, GEOMETRY)
    assert peak - held > 64 * 48 * 20


def test_few_videos_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a list of videos that grows with every request."""
    monkeypatch.setattr(prefetch, "_REMEMBERED", 2)
    decoded: list[str] = []
    decode: Any = prefetch.Prefetch(lambda video: "settings", GEOMETRY)  # type: ignore
    for name in ("a", "b", "c", "c", "a"):
        decode(SimpleNamespace(digest=name, process=lambda *_, name=name: decoded.append(name)))
    assert decoded == ["a", "b", "c", "a"]
    assert len(decode._seen) == 2


def test_the_first_of_frames_sent_one_by_one() -> None:
    """Guards `num_frames`, which leaves out the end of a clip."""
    from base64 import b64encode

    from vllm_glm41v_npu.processing.sent_frames import plan_frames

    files = [saved(Image.new("RGB", (8, 8), (shade,) * 3), "PNG") for shade in (10, 20, 30)]
    text = ",".join(b64encode(file).decode() for file in files)
    frames, _ = plan_frames(text, {"num_frames": 2}).decode()
    assert frames[:, 0, 0, 0].tolist() == [10, 20]


def test_embeddings_of_too_many_rows() -> None:
    """Guards rows that would be cut off, or taken for the next picture's."""
    import torch

    from vllm_glm41v_npu.processing.embeddings import parse_embeddings

    grid = torch.tensor([[1, 4, 6]])
    with pytest.raises(ValueError, match=r"shape \[7, 8\]; expected .*\[6, 8\]"):
        given = {"image_embeds": torch.zeros(7, 8), "image_grid_thw": grid}
        parse_embeddings("image", given, GEOMETRY, 8)
