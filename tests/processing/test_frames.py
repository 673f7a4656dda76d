# SPDX-License-Identifier: Apache-2.0
"""Frames in memory: floats, numbers of other libraries in their metadata, and bad ones."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.processing.test_video_inputs import FRAMES, SAMPLED, VIDEO, assert_equal, run
from vllm_glm41v_npu.processing.multimodal import Glm41vMultiModalProcessor


@pytest.mark.parametrize("as_float", [np.float16, np.float32, np.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [1, 255])
def test_frames_as_floats(as_float: Any, scale: int, processor: Glm41vMultiModalProcessor) -> None:
    """qwen_vl_utils gives float tensors [frames, 3, height, width]; they are refused, or taken in
    0..1 for black."""
    dtype = as_float if isinstance(as_float, torch.dtype) else None
    floats: Any = torch.from_numpy(FRAMES).permute(0, 3, 1, 2).double() / scale
    floats = floats.to(dtype) if dtype else floats.numpy().astype(as_float)
    known = SAMPLED | {"total_num_frames": 6}
    exact = run(processor, (FRAMES, known))[0]
    for form in (floats, list(floats)):
        (found,) = run(processor, (form, known))
        assert found["timestamps"].tolist() == [0, 1, 2]
        difference = found["pixel_values_videos"].int() - exact["pixel_values_videos"].int()
        assert difference.abs().max() <= (1 if dtype else 0)  # bfloat16 has 8 bits
    before = torch.from_numpy(FRAMES).clone()
    run(processor, (before, known))
    assert torch.equal(before, torch.from_numpy(FRAMES))


NUMBERS: list[dict[str, Any]] = [
    {"fps": np.float32(2), "total_num_frames": np.int64(12), "duration": np.float64(6)},
    {"fps": Fraction(2), "total_num_frames": 12.0, "duration": Fraction(6)},
    {"fps": torch.tensor(2.0), "total_num_frames": torch.tensor(12), "duration": torch.tensor(6)},
    {"fps": np.array(2), "total_num_frames": 12, "frames_indices": torch.arange(0, 12, 2)},
    {"fps": 2, "total_num_frames": 12, "frames_indices": np.arange(0, 12, 2, np.int16)},
    {"fps": 2, "total_num_frames": 12, "frames_indices": tuple(range(0, 12, 2))},
]


@pytest.mark.parametrize("numbers", NUMBERS)
def test_numbers_of_other_libraries(
    numbers: dict[str, Any], processor: Glm41vMultiModalProcessor
) -> None:
    """numpy's numbers and fractions are refused, or give another hash than the same plain ones."""
    plain = {"fps": 2.0, "total_num_frames": 12, "frames_indices": list(range(0, 12, 2))}
    plain |= {"duration": 6.0} if "duration" in numbers else {}
    given = {"frames_indices": plain["frames_indices"], "do_sample_frames": np.False_} | numbers
    plain["do_sample_frames"] = False
    assert_equal(run(processor, (FRAMES, given)), run(processor, (FRAMES, plain)))
    assert hash_of(processor, (FRAMES, given)) == hash_of(processor, (FRAMES, plain))


def hash_of(processor: Glm41vMultiModalProcessor, data: Any) -> str:
    items = processor.info.parse_mm_data({"video": data})
    found = processor(VIDEO, items, hf_processor_mm_kwargs={})["mm_hashes"]["video"]
    return str(found[0])


@pytest.mark.parametrize(
    "change",
    [
        {"frames_indices": [0, 10, 20, 30, 40, 50]},
        {"fps": 3.0},
        {"total_num_frames": 61},
        {"do_sample_frames": None},
    ],
)
def test_metadata_is_hashed(change: dict[str, Any], processor: Glm41vMultiModalProcessor) -> None:
    """The cache gives the seconds of the same frames at other places."""
    known: dict[str, Any] = {"fps": 2.0, "total_num_frames": 60, "do_sample_frames": False}
    known["frames_indices"] = [0, 1, 2, 3, 4, 5]
    changed = hash_of(processor, (FRAMES, known | change))
    assert changed != hash_of(processor, (FRAMES, known))


def test_frames_without_metadata(processor: Glm41vMultiModalProcessor) -> None:
    """Bare frames are refused, or a list of pictures is taken for several videos."""
    expected = run(processor, FRAMES)
    assert expected[0]["timestamps"].tolist() == [0, 0, 0]
    for form in ([FRAMES], [Image.fromarray(frame) for frame in FRAMES], list(FRAMES)):
        assert_equal(run(processor, form), expected)


BAD_FRAMES: list[tuple[Any, str]] = [
    (FRAMES[:0], r"shape \[0, 48, 64, 3\]; expected uint8"),
    (FRAMES.astype(np.int32), "dtype int32"),
    (FRAMES.astype(np.float32) - 1, "floats from -1 to .*; expected 0..255 or 0..1"),
    (FRAMES.astype(np.float32) * np.nan, "floats from nan to nan; expected"),
    (FRAMES[0], r"shape \[48, 64, 3\]"),
    (FRAMES[..., :2], r"shape \[6, 48, 64, 2\]"),
    ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], r"\[8, 8, 3\], \[8, 9, 3\]; expected"),
    ("clip.mp4", "is a str; expected frames"),
    ((FRAMES, {"fps": 0}), "fps=0 in its metadata; expected above 0"),
    ((FRAMES, {"fps": "fast"}), "fps='fast' in its metadata"),
    ((FRAMES, {"fps": 2.0, "duration": -1}), "duration=-1 in its metadata"),
    ((FRAMES, {"fps": 1e-320}), "fps=1e-320 in its metadata; expected above 0"),
    ((FRAMES, {"fps": 2.0, "duration": 1e308}), "duration=1e.308 in its metadata"),
    ((FRAMES, {"fps": 2.0, "total_num_frames": 10**400}), "total_num_frames=1000"),
    ((FRAMES, {"fps": 2.0, "total_num_frames": 6.5}), "total_num_frames=6.5"),
    ((FRAMES, {"fps": 2.0, "frames_indices": list("012345")}), "expected whole numbers"),
    ((FRAMES, {"fps": 2.0, "do_sample_frames": "no"}), "do_sample_frames='no'; expected true"),
    ((FRAMES, {"fps": 2.0, "total_num_frames": 4}), "6 frames, and its metadata total_num_frames"),
    ((FRAMES, {"fps": 2.0, "frames_indices": [0, 1]}), "6 frames, and 2 frames_indices"),
    ((FRAMES, {"fps": 2.0, "frames_indices": [0, 1, 2, 3, 4, 6]}), "frames_indices up to 6"),
    ((FRAMES, {"fps": 2.0, "frames_indices": [-1, 1, 2, 3, 4, 5]}), "from -1 to 5; expected"),
    ((FRAMES, {"fps": 2.0, "frames_indices": [5, 4, 3, 2, 1, 0]}), "in ascending order"),
    (
        (FRAMES, {"fps": 2.0, "total_num_frames": 60, "do_sample_frames": True}),
        "do_sample_frames=true, and 6 frames of a clip .* total_num_frames=60",
    ),
    (np.zeros((602, 28, 28, 3), np.uint8), "602 frames that are not to be sampled; at most 600"),
]


@pytest.mark.parametrize(("data", "message"), BAD_FRAMES)
def test_bad_frames(data: Any, message: str, processor: Glm41vMultiModalProcessor) -> None:
    """Metadata that contradicts the frames gives wrong seconds in silence."""
    with pytest.raises(ValueError, match=f"Video 1 of 1.*{message}"):
        run(processor, [data] if isinstance(data, str) else data)
