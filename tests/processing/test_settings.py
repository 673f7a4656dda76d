# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import Glm4vProcessor
from vllm.exceptions import VLLMValidationError

from tests.processing.conftest import CHECKPOINT, MakeProcessor
from tests.processing.oracle import GEOMETRY, random_picture
from vllm_glm41v_npu.processing.grid import PixelLimits
from vllm_glm41v_npu.processing.multimodal import Glm41vMultiModalProcessor
from vllm_glm41v_npu.processing.pixel_settings import ImageSettings, overrides_for
from vllm_glm41v_npu.processing.video_settings import VideoSettings

CHECKPOINT_LIMITS = PixelLimits(min_pixels=12544, max_pixels=50176)


def test_defaults_are_those_of_transformers() -> None:
    """A checkpoint without preprocessor_config.json is prepared with other numbers."""
    from transformers.models.glm4v.image_processing_glm4v import Glm4vImageProcessor

    theirs, ours = Glm4vImageProcessor(), ImageSettings()
    size = {"shortest_edge": ours.limits.min_pixels, "longest_edge": ours.limits.max_pixels}
    assert dict(theirs.size) == size
    assert (tuple(theirs.image_mean), tuple(theirs.image_std)) == (ours.mean, ours.std)
    assert theirs.rescale_factor == ours.rescale_factor
    sizes = theirs.patch_size, theirs.merge_size, theirs.temporal_patch_size
    assert sizes == (GEOMETRY.patch_size, GEOMETRY.merge_size, GEOMETRY.temporal_patch_size)


def test_settings_come_from_the_checkpoint(processor: Glm41vMultiModalProcessor) -> None:
    """preprocessor_config.json is overlooked, as transformers' own helper does."""
    assert processor.info.image_settings.limits == CHECKPOINT_LIMITS


@pytest.mark.parametrize("layout", ["none", "legacy", "nested", "both"])
def test_files_of_a_checkpoint(layout: str, tmp_path: Path) -> None:
    """One of the two places where transformers saves the settings is not read, or not first."""
    config = json.loads((CHECKPOINT / "preprocessor_config.json").read_text())
    expected = ImageSettings().limits if layout == "none" else CHECKPOINT_LIMITS
    if layout in ("nested", "both"):
        (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": config}))
    if layout == "both":
        config = {**config, "size": {"shortest_edge": 1, "longest_edge": 9999}}
    if layout in ("legacy", "both"):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    assert ImageSettings.from_pretrained(str(tmp_path), None, GEOMETRY).limits == expected


@pytest.mark.parametrize("there", ["video", "picture", "nested"])
def test_where_the_limits_of_videos_are(there: str, tmp_path: Path) -> None:
    """Guards checkpoints without the videos' own file, which have the limits of pictures."""
    size = {"shortest_edge": 12544, "longest_edge": 9_633_792}
    for name, most in (("video_", 20_000_000), ("", size["longest_edge"])):
        limits = size | {"longest_edge": most}
        if there == "picture" and name:
            continue
        (tmp_path / f"{name}preprocessor_config.json").write_text(json.dumps({"size": limits}))
    if there == "nested":
        nested = {"video_processor": {"size": size | {"longest_edge": 30_000_000}}}
        (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    most = {"video": 20_000_000, "picture": 9_633_792, "nested": 30_000_000}[there]
    assert VideoSettings.from_pretrained(str(tmp_path), None, GEOMETRY).limits.max_pixels == most


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"video_processor_type": "Glm4vVideoProcessor"}, None),
        ({"image_processor_type": "Glm4vImageProcessorFast"}, None),
        ({}, None),
        ({"video_processor_type": "Glm46VVideoProcessor"}, "Glm46VVideoProcessor"),
        ({"image_processor_type": "Glm46VImageProcessorFast"}, "Glm46VVideoProcessor"),
    ],
)
def test_videos_of_another_class_are_refused(
    settings: dict[str, str], named: str | None, tmp_path: Path, make_processor: MakeProcessor
) -> None:
    """Guards against other frames and other seconds than the model was trained on, in silence."""
    shutil.copytree(CHECKPOINT, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "video_preprocessor_config.json"
    content = json.loads(path.read_text())
    del content["video_processor_type"]
    content.pop("image_processor_type", None)
    path.write_text(json.dumps(content | settings))
    info = make_processor(model=tmp_path).info
    info.parse_mm_data({"image": random_picture(60, 90)})
    clip = {"video": np.zeros((4, 56, 56, 3), np.uint8)}
    if named is None:
        assert info.get_supported_mm_limits()["video"] is None
        info.parse_mm_data(clip)
        return
    assert info.get_supported_mm_limits()["video"] == 0
    with pytest.raises(VLLMValidationError, match=f"video processor is {named}, which takes other"):
        info.parse_mm_data(clip)


BAD_FILES = {
    "patch_size": (16, "patch_size=16, but vision_config in config.json says 14"),
    "merge_size": (1, "merge_size=1, but vision_config"),
    "do_resize": (False, "do_resize=False, but only True"),
    "resample": (2, "resample=2, but only 3"),
    "image_mean": ([0.5], r"image_mean=\[0.5\]; expected 3 numbers"),
    "size": ({"height": 336, "width": 336}, "size=.* shortest_edge and longest_edge"),
}


@pytest.mark.parametrize("key", BAD_FILES)
def test_bad_file(key: str, tmp_path: Path, make_processor: MakeProcessor) -> None:
    """A checkpoint that asks for something else is served with wrong pictures."""
    value, message = BAD_FILES[key]
    shutil.copytree(CHECKPOINT, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match=f"preprocessor_config.json has {message}"):
        make_processor(model=tmp_path).info.get_mm_max_tokens_per_item(8192, {"image": 1})


@pytest.mark.parametrize(
    ("server", "request_kwargs", "expected"),
    [
        ({}, {"max_pixels": 12544}, (12544, 25088)),
        ({}, {"min_pixels": 10000}, (20000, 50176)),
        ({}, {"size": {"shortest_edge": 1, "longest_edge": 40000}}, (1, 40000)),
        ({}, {"size": {"longest_edge": 40000}}, (12544, 40000)),
        ({}, {"size": {"longest_edge": 40000}, "max_pixels": 15000}, (12544, 30000)),
        ({"max_pixels": 200_000}, {}, (12544, 400_000)),
        ({"size": {"shortest_edge": 30000, "longest_edge": 60000}}, {}, (30000, 60000)),
        ({"max_pixels": 200_000}, {"size": {"longest_edge": 100_000}}, (12544, 100_000)),
        ({}, {"max_pixels": 8000, "images_kwargs": {"max_pixels": 20000}}, (12544, 40000)),
        ({}, {"max_pixels": 20000, "videos_kwargs": {"max_pixels": 8000}}, (12544, 40000)),
        ({"max_pixels": 15000, "images_kwargs": {"max_pixels": 20000}}, {}, (12544, 40000)),
    ],
)
def test_limits_of_server_and_request(
    server: dict[str, Any],
    request_kwargs: dict[str, Any],
    expected: tuple[int, int],
    make_processor: MakeProcessor,
    hf_processor: Glm4vProcessor,
) -> None:
    """An option is dropped on its way to the picture, or the server's wins over the request's."""
    processor = make_processor(mm_processor_kwargs=server)
    picture = random_picture(500, 300)
    items = processor.info.parse_mm_data({"image": picture})
    outputs = processor("<|image|>", items, hf_processor_mm_kwargs=request_kwargs)
    size = dict(zip(("shortest_edge", "longest_edge"), expected, strict=True))
    theirs = hf_processor.image_processor(picture, size=size, return_tensors="pt")
    (item,) = outputs["mm_kwargs"]["image"]
    assert item["image_grid_thw"].data.tolist() == theirs["image_grid_thw"][0].tolist()


def test_max_pixels_counts_a_picture_once(make_processor: MakeProcessor) -> None:
    """Guards the pixels that users of this family give: of a still, not of two frames of it.

    A screen of 1080 x 2400 is below 5,000,000 pixels, and transformers leaves it as it is.
    """
    info = make_processor(mm_processor_kwargs={"max_pixels": 5_000_000}).info
    assert info.get_num_image_tokens(image_width=1080, image_height=2400) == 172 * 78 // 4


BAD_KWARGS = [
    ({"max_pixel": 30000}, "max_pixel, which this model does not know. Use .*max_pixels, min_pix"),
    ({"max_pixels": 0}, "max_pixels=0; expected a whole number"),
    ({"max_pixels": "30000"}, "max_pixels='30000'; expected a whole number"),
    ({"max_pixels": True}, "max_pixels=True; expected"),
    ({"min_pixels": 2.5}, "min_pixels=2.5; expected"),
    ({"max_pixels": 500}, "max_pixels=500, less than the 784 of one token"),
    ({"max_pixels": 5000}, "min_pixels=6272, more than max_pixels=5000"),
    ({"size": {"height": 3}}, "expected a mapping with shortest_edge"),
    ({"size": 3}, "size=3; expected a mapping"),
]


@pytest.mark.parametrize(("kwargs", "message"), BAD_KWARGS)
def test_bad_kwargs(kwargs: dict[str, Any], message: str, make_processor: MakeProcessor) -> None:
    """A misspelt or impossible option is ignored, from a request or on the command line."""
    processor = make_processor()
    items = processor.info.parse_mm_data({"image": random_picture(60, 90)})
    with pytest.raises(ValueError, match=f"^mm_processor_kwargs .*{message}"):
        processor("<|image|>", items, hf_processor_mm_kwargs=kwargs)
    with pytest.raises(ValueError, match=f"^--mm-processor-kwargs .*{message}"):
        make_processor(mm_processor_kwargs=kwargs).info.get_mm_max_tokens_per_item(1, {})


def test_request_may_not_exceed_the_server(processor: Glm41vMultiModalProcessor) -> None:
    """One request resizes a picture to more than the memory that was set aside, or that exists."""
    items = processor.info.parse_mm_data({"image": random_picture(60, 90)})
    huge = {"min_pixels": 10**12, "max_pixels": 10**13}
    with pytest.raises(ValueError, match="max_pixels=10000000000000, but .* at most 25088"):
        processor("<|image|>", items, hf_processor_mm_kwargs=huge)


def test_choices_between_hugging_face_processors_are_ignored():
    """Guards start commands that are in use with vLLM's own class, such as use_fast=true."""
    kwargs = {"use_fast": True, "do_convert_rgb": True, "images_kwargs": {"use_fast": True}}
    assert overrides_for("images_kwargs", kwargs, "mm_processor_kwargs") == {}
