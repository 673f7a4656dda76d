# SPDX-License-Identifier: Apache-2.0
"""Videos against transformers, byte by byte: encoded clips, and frames in memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor
from transformers.video_utils import VideoMetadata

from tests.clips import Clip, irregular_times, moving_shapes, with_header_fps
from tests.engines import decode
from tests.processing.oracle import GEOMETRY
from tests.processing.video_oracle import SETTINGS, assert_same, theirs
from vllm_glm41v_npu.processing.encoded_video import EncodedVideo
from vllm_glm41v_npu.processing.frame_sampling import Timeline, sample_frames
from vllm_glm41v_npu.processing.grid import PixelLimits
from vllm_glm41v_npu.processing.video import DecodedVideo
from vllm_glm41v_npu.processing.video_settings import VideoSettings

SMALL = (32, 24)
CLIPS = {
    "half-a-second": Clip(30, 15),
    "three-quarters-mpeg4": Clip(30, 23, "mpeg4", "avi"),
    "odd-count": Clip(25, 63),
    "odd-pairs": Clip(24, 75, "mpeg4", "mp4"),
    "one-fps": Clip(1, 9, "mpeg4", "avi"),
    "two-fps": Clip(2, 7),
    "five-fps": Clip(5, 31, "mpeg4", "avi"),
    "ntsc": Clip(29.97, 95),
    "sixty-fps": Clip(60, 157),
    "long": Clip(2, 590, "mpeg4", "avi", SMALL),
    "at-the-limit": Clip(1, 300, "mpeg4", "mp4", SMALL),
    "over-the-limit": Clip(3, 930, "libx264", "mp4", SMALL),
    "over-the-limit-slow": Clip(1, 310, "mpeg4", "avi", SMALL),
    "matroska": Clip(12, 40, "libx264", "matroska"),
    "variable-rate": Clip(30, 80, times=irregular_times(80, 6.0)),
    "variable-rate-short": Clip(30, 21, times=irregular_times(21, 1.3, seed=2)),
    "large": Clip(4, 10, size=(720, 416)),
}


@pytest.mark.parametrize("name", CLIPS)
def test_an_encoded_clip_is_as_in_transformers(name: str) -> None:
    """Other frames, other seconds, other sizes or other pixels than the model was trained with."""
    data = CLIPS[name].encode()
    frames, metadata = decode(data)
    assert_same(EncodedVideo(data).process(SETTINGS, GEOMETRY), theirs(frames, metadata))


@pytest.mark.parametrize("name", ["odd-count", "one-fps", "over-the-limit"])
def test_frames_in_memory_are_as_in_transformers(name: str) -> None:
    """A decoded clip with its metadata is treated otherwise than its file."""
    frames, metadata = decode(CLIPS[name].encode())
    found = DecodedVideo(frames, metadata, "The video").process(SETTINGS, GEOMETRY)
    assert_same(found, theirs(frames, metadata))


@pytest.mark.parametrize("factor", [3, 20])
def test_a_wrong_rate_in_the_header(factor: int) -> None:
    """A clip whose header says that it is shorter: the header is believed, as in transformers."""
    data = with_header_fps(Clip(12, 240).encode(), factor)
    frames, metadata = decode(data)
    assert metadata.fps == pytest.approx(12 * factor)
    assert_same(EncodedVideo(data).process(SETTINGS, GEOMETRY), theirs(frames, metadata))


def test_no_length_in_the_header() -> None:
    """A stream without a frame count: transformers fails; here the frames are counted."""
    data = Clip(30, 90, container="h264").encode()
    frames, metadata = decode(data)
    assert metadata.total_num_frames <= 0
    assert metadata.fps
    known = VideoMetadata(
        total_num_frames=len(frames), fps=metadata.fps, duration=len(frames) / metadata.fps
    )
    assert_same(EncodedVideo(data).process(SETTINGS, GEOMETRY), theirs(frames, known))


@pytest.mark.parametrize("backend", ["opencv", "pyav"])
def test_both_backends_decode_the_same(backend: str) -> None:
    """The other way of decoding that vLLM has is never used, or chooses other frames."""
    data = Clip(10, 45, size=(96, 64)).encode()
    frames, metadata = decode(data)
    video = EncodedVideo(data, {"backend": backend})
    found = video.process(SETTINGS, GEOMETRY)
    expected = theirs(frames, metadata)
    assert list(found.grid) == expected.grid
    assert found.timestamps == expected.timestamps
    reference = EncodedVideo(data).process(SETTINGS, GEOMETRY).patches.float()
    # The two convert YUV to RGB with different rounding.
    assert (found.patches.float() - reference).abs().mean() < 2


SAMPLING: list[dict[str, Any]] = [{"fps": 1}, {"fps": 0.5}, {"fps": 5.5}, {"fps": 100}]


@pytest.mark.parametrize("overrides", SAMPLING)
def test_frames_a_second_can_be_asked_for(overrides: dict[str, Any]) -> None:
    """``fps`` is ignored, as users report of other servers."""
    data = Clip(12, 61).encode()
    frames, metadata = decode(data)
    chosen = SETTINGS.with_overrides(overrides, GEOMETRY, "test")
    found = EncodedVideo(data).process(chosen, GEOMETRY)
    assert_same(found, theirs(frames, metadata, **overrides))


@pytest.mark.parametrize(("wanted", "kept"), [(8, 8), (7, 8), (1, 2), (1000, 62)])
def test_a_number_of_frames_can_be_asked_for(wanted: int, kept: int) -> None:
    """``num_frames`` is ignored; the rule for it is even steps from the first frame."""
    timeline = Timeline(61, 12.0, 61 / 12)
    chosen = replace(SETTINGS, num_frames=wanted, max_frames=600)
    indices = sample_frames(timeline, chosen, "")
    steps = [int(step * 61 / min(wanted, 61)) for step in range(min(wanted, 61))]
    assert indices == steps + steps[-1:] * (len(steps) % 2)
    assert len(indices) == kept


def test_too_many_frames_are_thinned() -> None:
    """``max_frames`` is passed over, or cuts the end off."""
    timeline = Timeline(250, 25.0, 10.0)
    every = sample_frames(timeline, SETTINGS, "")
    kept = sample_frames(timeline, replace(SETTINGS, max_frames=7), "The video")
    assert len(every) == 20
    assert len(kept) == 6
    assert (kept[0], kept[-1]) == (every[0], every[-1])
    assert set(kept) < set(every)


def test_a_clip_shorter_than_half_a_second() -> None:
    """transformers fails with an IndexError; here the first and the last frame are taken."""
    data = Clip(24, 9).encode()
    frames, metadata = decode(data)
    with pytest.raises(IndexError):
        theirs(frames, metadata)
    found = EncodedVideo(data).process(SETTINGS, GEOMETRY)
    both = DecodedVideo(
        frames[[0, -1]], {"fps": 24, "do_sample_frames": False}, "The video"
    ).process(SETTINGS, GEOMETRY)
    assert torch.equal(found.patches, both.patches)
    assert found.timestamps == [0]


@given(
    total=st.integers(1, 4000),
    rate=st.sampled_from([0.5, 1.0, 5.0, 10.0, 23.976, 24.0, 25.0, 29.97, 50.0, 60.0]),
    asked=st.sampled_from([None, 0.3, 1, 2, 3.3, 24]),
    knows_duration=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_indices_of_any_clip(
    total: int, rate: float, asked: float | None, knows_duration: bool
) -> None:
    """A frame more or less at some length or rate that nobody tried."""
    duration = total / rate if knows_duration else None
    metadata = VideoMetadata(total_num_frames=total, fps=rate, duration=duration)
    expected = Glm4vVideoProcessor().sample_frames(metadata, fps=asked).tolist()
    chosen = replace(SETTINGS, fps=asked or SETTINGS.fps, max_frames=10**6)
    found = sample_frames(Timeline(total, rate, duration or 0.0), chosen, "")
    assert found == expected or (expected == [] and found in ([0, 0], [0, total - 1]))


# --- frames that were sampled before ---


@pytest.mark.parametrize("count", [2, 3, 5, 8, 9])
@pytest.mark.parametrize("limits", [SETTINGS.limits, PixelLimits(784, 4 * 56 * 84)])
def test_sampled_frames_are_taken_as_they_are(count: int, limits: PixelLimits) -> None:
    """Frames are sampled a second time, or an odd number is padded before the size is chosen."""
    frames = np.stack(list(moving_shapes(count, (120, 80))))
    indices = [7 * index for index in range(count)]
    metadata = {
        "fps": 10.0,
        "total_num_frames": 100,
        "frames_indices": indices,
        "do_sample_frames": False,
    }
    chosen = replace(SETTINGS, limits=limits)
    found = DecodedVideo(frames, metadata, "The video").process(chosen, GEOMETRY)
    known = VideoMetadata(total_num_frames=100, fps=10.0, frames_indices=indices)
    assert_same(found, theirs(frames, known, chosen, do_sample_frames=False))


def test_sampled_frames_are_known_by_their_metadata() -> None:
    """vLLM's own loaders do not always say do_sample_frames."""
    frames = np.stack(list(moving_shapes(6, (64, 48))))
    metadata = {"fps": 30.0, "total_num_frames": 300, "frames_indices": [0, 60, 120, 180, 240, 299]}
    found = DecodedVideo(frames, metadata, "The video").process(SETTINGS, GEOMETRY)
    assert found.timestamps == [0, 4, 8]


def test_no_metadata_at_all() -> None:
    """A bare array: every frame, 24 a second, as in transformers with do_sample_frames=False."""
    frames = np.stack(list(moving_shapes(50, (64, 48))))
    found = DecodedVideo(frames, {}, "The video").process(SETTINGS, GEOMETRY)
    assert_same(found, theirs(frames, None, do_sample_frames=False))


def test_one_frame_is_a_still_picture() -> None:
    """transformers refuses one frame; here it is shown twice, in the size of a picture."""
    frames = np.stack(list(moving_shapes(1, (64, 48))))
    found = DecodedVideo(frames, {}, "The video").process(SETTINGS, GEOMETRY)
    first, second = found.patches.chunk(2, dim=1)
    assert torch.equal(first, second)
    assert found.timestamps == [0]


@pytest.mark.parametrize("sample", [True, False])
def test_sampling_can_be_switched(sample: bool) -> None:
    """``do_sample_frames`` is ignored, as users report of other servers."""
    data = Clip(12, 37).encode()
    frames, metadata = decode(data)
    chosen = replace(SETTINGS, do_sample_frames=sample)
    expected = theirs(frames, metadata, do_sample_frames=sample)
    assert_same(DecodedVideo(frames, metadata, "").process(chosen, GEOMETRY), expected)
    assert_same(EncodedVideo(data).process(chosen, GEOMETRY), expected)
    assert expected.grid[0] == (4 if sample else 19) - sample


def test_the_defaults_are_those_of_transformers() -> None:
    """A checkpoint without video_preprocessor_config.json is prepared with other numbers."""
    theirs_, ours = Glm4vVideoProcessor(), VideoSettings()
    size = {"shortest_edge": ours.limits.min_pixels, "longest_edge": ours.limits.max_pixels}
    assert dict(theirs_.size) == size
    assert (tuple(theirs_.image_mean), tuple(theirs_.image_std)) == (ours.mean, ours.std)
    assert (theirs_.fps, theirs_.max_duration) == (ours.fps, ours.max_duration)


def test_frames_are_not_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long clip is decoded whole before it is resized: gigabytes at 1080p."""
    made, gone, alive = 0, 0, []
    decode_one_by_one = EncodedVideo._decode

    def left() -> None:
        nonlocal gone
        gone += 1

    def counted(self: EncodedVideo, wanted: list[int]) -> Iterator[np.ndarray]:
        nonlocal made
        for pixels in decode_one_by_one(self, wanted):
            weakref.finalize(pixels, left)
            made += 1
            alive.append(made - gone)
            yield pixels

    monkeypatch.setattr(EncodedVideo, "_decode", counted)
    found = EncodedVideo(Clip(2, 40).encode()).process(SETTINGS, GEOMETRY)
    assert len(alive) == 2 * found.grid[0] == 40
    assert max(alive) <= 2
