# SPDX-License-Identifier: Apache-2.0
"""Videos through the media connector: frames sent one by one, sizes, and whose loader it is."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

from tests.clips import Clip
from tests.processing.loading import png
from tests.processing.test_video_inputs import run
from vllm_glm41v_npu.processing.connector import Glm41vMediaConnector
from vllm_glm41v_npu.processing.info import Glm41vProcessingInfo
from vllm_glm41v_npu.processing.multimodal import Glm41vMultiModalProcessor


def frames_url(*sizes: tuple[int, int]) -> str:
    frames = (base64.b64encode(png(size)).decode() for size in sizes)
    return "data:video/jpeg;base64," + ",".join(frames)


def load_video(url: str, **options: Any) -> Any:
    """By both ways, which have to agree."""
    connector = MEDIA_CONNECTOR_REGISTRY.load("http", media_io_kwargs={"video": options})
    known = {"video_processor": "Glm4vVideoProcessor"}
    results: list[Any] = []
    for way in (
        connector.fetch_video,
        lambda *a, **k: asyncio.run(connector.fetch_video_async(*a, **k)),
    ):
        try:
            results.append(way(url, **known))
        except ValueError as error:
            results.append(str(error))
    if isinstance(results[0], str):
        assert results[0] == results[1]
        raise ValueError(results[0])
    return results[0]


BAD_SENT_FRAMES: list[tuple[str, dict[str, Any], str]] = [
    (frames_url((8, 8), (9, 8)), {}, "Frame 2 of 2 is 9 x 8 pixels, and the first one 8 x 8; exp"),
    (frames_url((8, 8)) + ",", {}, "Frame 2 of 2 is not a picture"),
    (frames_url((8, 8)), {"num_frames": 0}, "num_frames=0; expected 1 or more"),
    (frames_url((8, 8)), {"frame_rate": 2}, "has frame_rate; expected total_num_frames, fps"),
    (frames_url((8, 8)), {"video_backend": "molmo2"}, "video_backend='molmo2'; a loader"),
    ("data:video/jpeg;base64,", {}, "Frame 1 of 1 is not a picture"),
    ("data:video/jpeg;base64,!!", {}, "not base64"),
]


@pytest.mark.parametrize(("url", "options", "message"), BAD_SENT_FRAMES)
def test_bad_frames_sent_one_by_one(
    url: str, options: dict[str, Any], message: str, processor: Glm41vMultiModalProcessor
) -> None:
    """numpy's words about stacking arrays, or an option that is ignored."""
    with pytest.raises(ValueError, match=message):
        load_video(url, **options)


def test_the_first_frames_are_taken(processor: Glm41vMultiModalProcessor) -> None:
    frames, metadata = load_video(frames_url(*[(32, 28)] * 5), num_frames=3, fps=2)
    assert frames.shape == (3, 28, 32, 3)
    assert run(processor, (frames, metadata))[0]["timestamps"].tolist() == [0, 1]


def test_videos_are_held_to_their_own_size(
    processor: Glm41vMultiModalProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A video is as large as it likes, or is held to the limit of pictures."""
    monkeypatch.setenv("VLLM_GLM41V_NPU_MAX_VIDEO_MB", "1")
    data = Clip(10, 8).encode()
    large = data + (1 << 20).to_bytes(4, "big") + b"free" + bytes(1 << 20)
    url = "data:video/mp4;base64,"
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        load_video(url + base64.b64encode(large).decode())
    monkeypatch.setenv("VLLM_GLM41V_NPU_MAX_VIDEO_MB", "2")
    monkeypatch.setenv("VLLM_GLM41V_NPU_MAX_IMAGE_MB", "1")
    assert load_video(url + base64.b64encode(large).decode()).timeline.total_num_frames == 8


def test_the_connector_has_the_settings_of_the_server(
    processor: Glm41vMultiModalProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it vLLM's own connector loads the media: no guard, no budget, no prefetch."""
    monkeypatch.setattr(MEDIA_CONNECTOR_REGISTRY, "name2class", {})
    info = Glm41vProcessingInfo(processor.info.ctx)
    connector = MEDIA_CONNECTOR_REGISTRY.load("http", {"video": {"fps": 1}})
    assert isinstance(connector, Glm41vMediaConnector)
    assert connector.prefetch is info.prefetch
    assert connector.media_io_kwargs == {"video": {"fps": 1}}


def test_another_models_videos_are_left_to_vllm(
    processor: Glm41vMultiModalProcessor,
) -> None:
    """A second model in the process gets what only this one understands; and a request chooses a
    loader of vLLM's, which samples otherwise and lets FFmpeg guess the format."""
    connector = MEDIA_CONNECTOR_REGISTRY.load("http")
    url = "data:video/mp4;base64," + base64.b64encode(Clip(10, 8).encode()).decode()
    frames, metadata = connector.fetch_video(url, video_processor="Qwen2VLVideoProcessor")
    assert len(frames) == metadata["total_num_frames"] == 8
    options = {"video": {"video_backend": "opencv"}}
    named = MEDIA_CONNECTOR_REGISTRY.load("http", media_io_kwargs=options)
    with pytest.raises(ValueError, match="video_backend='opencv'; a loader of videos is chosen"):
        named.fetch_video(url, video_processor="Glm4vVideoProcessor")
    named = Glm41vMediaConnector(
        options, prefetch=processor.info.prefetch, server_video_backend="opencv"
    )
    frames, _ = named.fetch_video(url, video_processor="Glm4vVideoProcessor")
    assert len(frames) == 8
