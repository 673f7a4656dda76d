# SPDX-License-Identifier: Apache-2.0
"""The forms in which videos are given, and bad ones: a sentence for each."""

from __future__ import annotations

import asyncio
import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.video_utils import VideoMetadata
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

from tests.clips import Clip, audio_only, moving_shapes, with_header_fps
from tests.processing.conftest import MakeProcessor
from tests.processing.video_files import recorded
from vllm_glm41v_npu.processing.encoded_video import EncodedVideo
from vllm_glm41v_npu.processing.multimodal import Glm41vMultiModalProcessor

VIDEO = "<|begin_of_video|><|video|><|end_of_video|>"
FRAMES = np.stack(list(moving_shapes(6, (64, 48))))
SAMPLED = {"fps": 2.0, "do_sample_frames": False}


def run(
    processor: Glm41vMultiModalProcessor, data: Any, count: int = 1, **mm_kwargs: object
) -> list[dict[str, torch.Tensor]]:
    """The tensors of each video."""
    items = processor.info.parse_mm_data({"video": data})
    outputs = processor(VIDEO * count, items, hf_processor_mm_kwargs=mm_kwargs)
    found = [
        {key: field.data for key, field in item.items()} for item in outputs["mm_kwargs"]["video"]
    ]
    assert len(found) == count
    return found


def assert_equal(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_frames_in_every_form(processor: Glm41vMultiModalProcessor) -> None:
    """An array, a tensor, a list of pictures, alone or in a list, with metadata of either kind."""
    pictures = [Image.fromarray(frame) for frame in FRAMES]
    tensor = torch.from_numpy(FRAMES)
    expected = run(processor, (FRAMES, SAMPLED))
    assert expected[0]["timestamps"].tolist() == [0, 1, 2]
    metadata = VideoMetadata(total_num_frames=6, fps=2.0, frames_indices=list(range(6)))
    forms: list[Any] = [
        [(FRAMES, SAMPLED)],
        (tensor, SAMPLED),
        (tensor.permute(0, 3, 1, 2), SAMPLED),
        (FRAMES.transpose(0, 3, 1, 2), SAMPLED),
        (pictures, SAMPLED),
        (list(FRAMES), SAMPLED),
        (FRAMES, metadata),
    ]
    for form in forms:
        assert_equal(run(processor, form), expected)


def test_several_videos_of_different_sizes(processor: Glm41vMultiModalProcessor) -> None:
    """The rows of one are cut off with the other's."""
    other = np.stack(list(moving_shapes(3, (120, 40))))
    alone = [run(processor, video)[0] for video in (FRAMES, other)]
    assert_equal(run(processor, [FRAMES, other], count=2), alone)


def test_a_file_in_every_form(make_processor: MakeProcessor, tmp_path: Path) -> None:
    """Bytes, a path, and what the loader of URLs makes of base64 and of file URLs."""
    processor = make_processor()  # videos are fetched for the server that was made last
    data = Clip(10, 31, "mpeg4", "avi").encode()
    path = tmp_path / "clip.avi"
    path.write_bytes(data)
    expected = run(processor, data)
    assert expected[0]["video_grid_thw"].tolist()[0] == 3
    connector = MEDIA_CONNECTOR_REGISTRY.load("http", allowed_local_media_path=str(tmp_path))
    encoded = "data:video/avi;base64," + base64.b64encode(data).decode()
    processor_name = "Glm4vVideoProcessor"
    for form in (
        path,
        [data],
        connector.fetch_video(encoded, video_processor=processor_name),
        connector.fetch_video(path.as_uri(), video_processor=processor_name),
        asyncio.run(connector.fetch_video_async(encoded, video_processor=processor_name)),
    ):
        assert_equal(run(processor, form), expected)


def jpeg_sequence(count: int) -> str:
    parts = []
    for frame in moving_shapes(count, (64, 48)):
        buffer = BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG")
        parts.append(base64.b64encode(buffer.getvalue()).decode())
    return "data:video/jpeg;base64," + ",".join(parts)


def test_frames_as_base64(make_processor: MakeProcessor) -> None:
    """vLLM's form for frames sampled by the client: it would take only the first 32 of them."""
    processor = make_processor()
    options: dict[str, Any] = {"video": {"fps": 4, "frames_indices": [3 * i for i in range(40)]}}
    options["video"]["total_num_frames"] = 120
    connector = MEDIA_CONNECTOR_REGISTRY.load("http", media_io_kwargs=options)
    video = connector.fetch_video(jpeg_sequence(40), video_processor="Glm4vVideoProcessor")
    (found,) = run(processor, [video])
    assert found["timestamps"].tolist() == [int(6 * pair / 4) for pair in range(20)]


def test_frames_taken_elsewhere_are_another_video(processor: Glm41vMultiModalProcessor) -> None:
    """The cache answers with the seconds of the first clip where the second has equal frames."""
    found = []
    for step in (10, 20):
        indices = [step * place for place in range(6)]
        metadata = SAMPLED | {"fps": 10.0, "total_num_frames": 120, "frames_indices": indices}
        items = processor.info.parse_mm_data({"video": (FRAMES, metadata)})
        outputs = processor(VIDEO, items, hf_processor_mm_kwargs={})
        ((item,), (name,)) = outputs["mm_kwargs"]["video"], outputs["mm_hashes"]["video"]
        found.append((name, item["timestamps"].data.tolist()))
    (first, seconds), (second, later) = found
    assert (seconds, later) == ([0, 2, 4], [0, 4, 8])
    assert first != second


# --- settings ---


def pairs(found: list[dict[str, torch.Tensor]]) -> int:
    return int(found[0]["video_grid_thw"][0])


def test_settings_of_a_request_and_of_the_server(make_processor: MakeProcessor) -> None:
    """The request's, else those for its media, else the server's, else the checkpoint's."""
    data = Clip(12, 96).encode()  # 8 s
    plain, server = make_processor(), make_processor(mm_processor_kwargs={"fps": 1})
    assert pairs(run(plain, data)) == 8
    assert pairs(run(server, data)) == 4
    assert pairs(run(server, data, fps=0.5)) == 2
    assert pairs(run(server, data, num_frames=6)) == 3
    assert pairs(run(server, data, max_frames=2)) == 1
    assert pairs(run(plain, EncodedVideo(data, {"fps": 0.25}))) == 1
    assert pairs(run(plain, EncodedVideo(data, {"fps": 0.25}), fps=1)) == 4
    assert pairs(run(plain, EncodedVideo(data, {"num_frames": -1}))) == 8
    assert pairs(run(plain, data, videos_kwargs={"fps": 1})) == 4
    assert pairs(run(plain, data, do_sample_frames=False)) == 48
    assert pairs(run(plain, (FRAMES, {"fps": 6.0, "duration": 1.0}))) == 1
    assert pairs(run(plain, (FRAMES, {"fps": 6.0}), do_sample_frames=False)) == 3


MORE_FRAMES: list[tuple[dict[str, Any], int]] = [
    ({"fps": 100}, 48),  # as many as there are
    ({"fps": 1e308}, 48),
    ({"fps": 1e308, "max_duration": 1e308}, 48),
    ({"fps": 1e308, "max_duration": 2}, 48),
    ({"fps": 100, "max_frames": 10}, 5),
    ({"fps": 1e-308}, 1),
]


@pytest.mark.parametrize(("kwargs", "expected"), MORE_FRAMES)
def test_any_number_of_frames_a_second(
    kwargs: dict[str, Any], expected: int, processor: Glm41vMultiModalProcessor
) -> None:
    """A large ``fps`` hangs, takes all memory, or overflows."""
    assert pairs(run(processor, Clip(12, 96).encode(), **kwargs)) == expected
    for data in (recorded([80 * i for i in range(96)]), (FRAMES, {"fps": 6.0, "duration": 9e8})):
        assert pairs(run(processor, data, **kwargs)) >= 1


def test_more_frames_a_second_than_the_server_takes(make_processor: MakeProcessor) -> None:
    """A request's ``fps`` is thinned out in silence, where its ``num_frames`` is refused."""
    data = Clip(30, 180, size=(32, 32)).encode()  # 6 s
    processor = make_processor(mm_processor_kwargs={"max_duration": 20})
    with pytest.raises(ValueError, match="has 60 frames at fps=10, .* most 40 .* fps=6.67 or less"):
        run(processor, data, fps=10)
    with pytest.raises(ValueError, match="has 60 frames at fps=10, but this server takes at most"):
        run(processor, EncodedVideo(data, {"fps": 10}))
    assert pairs(run(processor, data, fps=6)) == 18
    assert pairs(run(processor, data, fps=10, max_frames=20)) == 10


def test_pixels_of_pictures_and_videos_apart(processor: Glm41vMultiModalProcessor) -> None:
    """transformers' nested names limit videos alone."""
    (found,) = run(processor, FRAMES, videos_kwargs={"min_pixels": 784, "max_pixels": 6 * 784})
    assert found["video_grid_thw"].tolist() == [3, 2, 2]
    items = processor.info.parse_mm_data({"image": Image.fromarray(FRAMES[0])})
    kwargs = {"videos_kwargs": {"min_pixels": 784, "max_pixels": 6 * 784}}
    outputs = processor("<|image|>", items, hf_processor_mm_kwargs=kwargs)
    assert outputs["mm_kwargs"]["image"][0]["image_grid_thw"].data.prod() > 4


BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"fps": 0}, "fps=0; expected frames a second"),
    ({"fps": -2}, "fps=-2; expected"),
    ({"fps": "2"}, "fps='2'; expected"),
    ({"fps": float("nan")}, "fps=nan; expected"),
    ({"num_frames": 0}, "num_frames=0; expected a whole number"),
    ({"num_frames": 2.5}, "num_frames=2.5; expected"),
    ({"max_frames": 1}, "max_frames=1; expected a whole number, at least 2"),
    ({"max_duration": 0}, "max_duration=0; expected seconds"),
    ({"do_sample_frames": 1}, "do_sample_frames=1; expected true or false"),
    ({"fps": 1, "num_frames": 4}, "both fps=1 and num_frames=4; give one"),
    ({"num_frames": 601}, "num_frames=601, but this server takes at most 600"),
    ({"max_pixels": 10**9}, "max_pixels=1000000000, but this server was started"),
    ({"frames": 3}, "has frames, which this model does not know"),
    ({"images_kwargs": {"fps": 3}}, "images_kwargs has fps, which"),
    ({"videos_kwargs": 3}, "videos_kwargs=3; expected a mapping"),
]


@pytest.mark.parametrize(("kwargs", "message"), BAD_SETTINGS)
def test_bad_settings(
    kwargs: dict[str, Any], message: str, processor: Glm41vMultiModalProcessor
) -> None:
    """A misspelt or impossible option is ignored."""
    with pytest.raises(ValueError, match=message):
        run(processor, Clip(10, 8).encode(), **kwargs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0}, "media_io_kwargs has fps=0; expected"),
        ({"backend": "decord"}, r"backend=decord; expected backend \(opencv or pyav\)"),
        ({"frame_rate": 2}, "media_io_kwargs for videos has frame_rate; expected"),
    ],
)
def test_bad_media_settings(
    options: dict[str, Any], message: str, processor: Glm41vMultiModalProcessor
) -> None:
    """What is given to the loader is ignored where it is wrong."""
    with pytest.raises(ValueError, match=message):
        run(processor, EncodedVideo(Clip(10, 8).encode(), options))


# --- bad videos ---


def truncated(share: float) -> bytes:
    data = Clip(10, 80, "mpeg4", "avi").encode()
    return data[: int(len(data) * share)]


BAD_FILES = {
    "empty": (b"", "0 bytes are no video"),
    "text": (b"this is a text file, not a video" * 9, "cannot be decoded"),
    "audio": (audio_only(), "cannot be decoded"),
    "mp4 without its index": (Clip(10, 40).encode()[:-800], "cannot be decoded"),
    "cut in the header": (truncated(0.03), "cannot be decoded|no frame"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
@pytest.mark.parametrize("backend", ["opencv", "pyav"])
def test_a_file_that_is_no_video(
    kind: str, backend: str, processor: Glm41vMultiModalProcessor
) -> None:
    """A crash deep in a decoder, or a hang, instead of a sentence with the video's number."""
    data, message = BAD_FILES[kind]
    with pytest.raises(ValueError, match=f"^Video 2 of 2 .*({message})"):
        run(processor, [FRAMES, EncodedVideo(data, {"backend": backend})], count=2)


def test_a_truncated_file_gives_what_it_has(processor: Glm41vMultiModalProcessor) -> None:
    """A download that stopped half-way is refused whole, or hangs."""
    (found,) = run(processor, truncated(0.55))
    whole = run(processor, truncated(1.0))[0]
    kept = len(found["timestamps"])
    assert 2 <= kept < len(whole["timestamps"])
    assert found["timestamps"].tolist() == whole["timestamps"].tolist()[:kept]


def test_an_unlikely_rate(processor: Glm41vMultiModalProcessor) -> None:
    """10,000 frames a second in a header hang, crash, or leave no way to more than two frames."""
    data = with_header_fps(Clip(10, 40).encode(), 1000)
    assert EncodedVideo(data).timeline.fps == pytest.approx(10_000)
    assert pairs(run(processor, data)) == 1
    assert pairs(run(processor, data, num_frames=8)) == 4
