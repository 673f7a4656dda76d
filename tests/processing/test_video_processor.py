# SPDX-License-Identifier: Apache-2.0
"""Prompts with videos, alone and among pictures; with and without vLLM's cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import Glm4vProcessor
from vllm.config.multimodal import MultiModalConfig
from vllm.multimodal.cache import MultiModalProcessorOnlyCache

from tests.clips import Clip, moving_shapes
from tests.engines import decode
from tests.processing.conftest import MakeProcessor
from tests.processing.oracle import channels_first, random_picture
from vllm_glm41v_npu.processing.encoded_video import EncodedVideo
from vllm_glm41v_npu.processing.multimodal import Glm41vMultiModalProcessor
from vllm_glm41v_npu.processing.prefetch import Prefetch

IMAGE = "<|begin_of_image|><|image|><|end_of_image|>"
VIDEO = "<|begin_of_video|><|video|><|end_of_video|>"
CLIPS = [Clip(12, 61), Clip(30, 400, "mpeg4", "avi", (40, 72)), Clip(1, 24, "mpeg4", "avi")]


def run(processor: Glm41vMultiModalProcessor, prompt: str | list[int], data: Any) -> dict[str, Any]:
    return processor(prompt, processor.info.parse_mm_data(data), hf_processor_mm_kwargs={})


def tensors(outputs: dict[str, Any], modality: str, key: str) -> torch.Tensor:
    return torch.cat([item[key].data for item in outputs["mm_kwargs"][modality]])


@pytest.mark.parametrize(("videos", "pictures"), [(1, 0), (3, 0), (1, 2), (2, 1)])
def test_prompt_and_pixels_are_those_of_transformers(
    videos: int, pictures: int, processor: Glm41vMultiModalProcessor, hf_processor: Glm4vProcessor
) -> None:
    """A wrong second or a token too many in a video shifts every position behind it.

    Videos come first: transformers writes a video's tokens over those of a picture before it.
    """
    files = [clip.encode() for clip in CLIPS[:videos]]
    decoded = [decode(data) for data in files]
    images = [random_picture(60 + 30 * number, 90) for number in range(pictures)]
    prompt = "a" + "b".join([VIDEO] * videos) + "图".join([IMAGE] * pictures) + "c 7"
    expected = hf_processor(
        text=prompt,
        images=images or None,
        videos=[frames for frames, _ in decoded],
        video_metadata=[metadata for _, metadata in decoded],
        do_rescale=False,
        do_normalize=False,
        return_tensors="pt",
    )
    found = run(processor, prompt, {"video": files} | ({"image": images} if images else {}))

    assert found["prompt_token_ids"] == expected["input_ids"][0].tolist()
    grids = tensors(found, "video", "video_grid_thw").reshape(-1, 3)
    assert torch.equal(grids, expected["video_grid_thw"])
    pixels = channels_first(tensors(found, "video", "pixel_values_videos"), 2)
    assert torch.equal(pixels, expected["pixel_values_videos"].reshape(pixels.shape))
    embeds = np.zeros(len(found["prompt_token_ids"]), bool)
    for ranges in found["mm_placeholders"].values():
        for place in ranges:
            for first, last in place.extract_embeds_range():
                embeds[first : last + 1] = True
    is_image = expected["input_ids"][0].numpy() == processor.info.get_hf_config().image_token_id
    assert np.array_equal(embeds, is_image)


def test_a_picture_as_large_as_a_pair_of_frames(processor: Glm41vMultiModalProcessor) -> None:
    """The tokens of a pair are taken for the picture's, which has as many."""
    frames = np.stack(list(moving_shapes(4, (112, 112))))
    picture = random_picture(112, 112)
    for prompt, first in ((VIDEO + IMAGE, "video"), (IMAGE + VIDEO, "image")):
        found = run(processor, prompt, {"image": picture, "video": frames})
        (of_video,), (of_image,) = (found["mm_placeholders"][m] for m in ("video", "image"))
        assert (of_video.offset < of_image.offset) == (first == "video")
        assert of_video.get_num_embeds() == 2 * of_image.get_num_embeds()


@pytest.mark.parametrize(("prompt", "found"), [("a", 0), (VIDEO * 2, 2), (VIDEO + IMAGE, 1)])
def test_count_of_placeholders(
    prompt: str, found: int, processor: Glm41vMultiModalProcessor
) -> None:
    """An assertion deep in vLLM instead of both numbers."""
    frames = np.stack(list(moving_shapes(4, (64, 48))))
    data = {"video": [frames, frames, frames]}
    with pytest.raises(ValueError, match=rf"has {found} video placeholder.* carries 3 video"):
        run(processor, prompt, data)


# --- vLLM's cache ---


def pool(seed: int) -> dict[str, list[Any]]:
    """Items that are drawn from again and again; of some kinds a mistake in hashing would show."""
    rng = np.random.default_rng(seed)
    frames = np.stack(list(moving_shapes(6, (64, 48), seed)))
    data = Clip(6, 20, "mpeg4", "avi").encode(seed)
    return {
        "image": [
            random_picture(int(height), int(width), seed)
            for height, width in rng.integers(28, 150, (3, 2))
        ],
        "video": [
            data,
            EncodedVideo(data, {"fps": 1}),
            (frames, {"fps": 2.0, "do_sample_frames": False}),
            (frames, {"fps": 1.0, "do_sample_frames": False}),
            frames[:3],
        ],
    }


@pytest.mark.parametrize("hit_rate", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("as_tokens", [False, True])
def test_cached_and_uncached_are_equal(
    hit_rate: float, as_tokens: bool, make_processor: MakeProcessor
) -> None:
    """A cached item brings another's tokens, seconds or pixels; or text and tokens differ.

    vLLM's own tests of processors do the same: random mixes, of which a share was seen before.
    """
    config = make_processor().info.ctx.model_config
    config.multimodal_config = MultiModalConfig(mm_processor_cache_gb=1)
    cached = make_processor(cache=MultiModalProcessorOnlyCache(config))
    plain = make_processor()
    rng = np.random.default_rng(int(hit_rate * 10))
    known = pool(0)
    for batch in range(12):
        items = known if rng.random() < hit_rate else pool(batch + 1)
        counts = {"image": int(rng.integers(0, 3)), "video": int(rng.integers(0, 3))}
        data = {
            modality: [items[modality][i] for i in rng.integers(0, len(items[modality]), count)]
            for modality, count in counts.items()
            if count
        }
        parts = [IMAGE] * counts["image"] + [VIDEO] * counts["video"]
        prompt: str | list[int] = "x".join(["a", *rng.permutation(parts).tolist(), "b"])
        if as_tokens:
            prompt = plain.info.get_tokenizer().encode(prompt)
        assert_same(run(cached, prompt, data), run(plain, prompt, data))


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["prompt_token_ids"] == expected["prompt_token_ids"]
    assert found["mm_placeholders"] == expected["mm_placeholders"]
    assert found["mm_hashes"] == expected["mm_hashes"]
    for modality, items in expected["mm_kwargs"].items():
        for ours, theirs in zip(found["mm_kwargs"][modality], items, strict=True):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key].data, theirs[key].data) for key in theirs)


def test_a_video_is_decoded_once(processor: Glm41vMultiModalProcessor) -> None:
    """A fetched video is decoded in the thread that fetched it, and again by the processor; or a
    repeated one, which the cache holds, is decoded every time."""
    calls: list[str] = []

    class Counted(EncodedVideo):
        def _process(self, *args: Any) -> Any:
            calls.append(self.digest)
            return super()._process(*args)

    assert isinstance(Counted(b""), tuple)  # vLLM would pickle anything else to hash it
    data = Clip(6, 20, "mpeg4", "avi").encode()
    info = processor.info
    prefetch = Prefetch(lambda v: info.get_video_settings({}, v.options), info.geometry)
    first, again = Counted(data), Counted(data)
    prefetch(first)
    run(processor, VIDEO, {"video": first})
    assert len(calls) == 1
    prefetch(again)
    assert len(calls) == 1
    run(processor, VIDEO, {"video": again})  # this processor has no cache
    assert len(calls) == 2
    prefetch.forget(again)
    prefetch(Counted(data))
    assert len(calls) == 3


# --- precomputed embeddings ---

HIDDEN = 256


def embeddings(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "video_embeds": torch.randn(2 * 6 + 1, HIDDEN),
        "video_grid_thw": torch.tensor([[2, 4, 6], [1, 2, 2]]),
        "timestamps": torch.tensor([0, 1, 7]),
    }
    return {key: value for key, value in (data | changes).items() if value is not None}


def test_embeddings(make_processor: MakeProcessor) -> None:
    """Embeddings are cut at the wrong rows, or the prompt gets other seconds."""
    processor = make_processor(enable_mm_embeds=True)
    data = embeddings()
    outputs = run(processor, VIDEO * 2, {"video": data})
    places = outputs["mm_placeholders"]["video"]
    assert [place.get_num_embeds() for place in places] == [12, 1]
    assert torch.equal(tensors(outputs, "video", "video_embeds"), data["video_embeds"])
    assert "1<|end_of_video|>" in processor.info.get_tokenizer().decode(outputs["prompt_token_ids"])


BAD_EMBEDDINGS = {
    "no seconds": ({"timestamps": None}, "timestamps"),
    "too few seconds": ({"timestamps": torch.tensor([0, 1])}, "expected 3 whole seconds"),
    "too few rows": ({"video_embeds": torch.zeros(12, HIDDEN)}, r"expected .*\[13, 256\]"),
    "odd grid": ({"video_grid_thw": torch.tensor([[2, 3, 4], [1, 2, 2]])}, r"\(t, h, w\)"),
}


@pytest.mark.parametrize("case", BAD_EMBEDDINGS)
def test_bad_embeddings(case: str, make_processor: MakeProcessor) -> None:
    """Misshapen features reach the engine and stop it for everybody."""
    changes, message = BAD_EMBEDDINGS[case]
    with pytest.raises(ValueError, match=message):
        run(make_processor(enable_mm_embeds=True), VIDEO * 2, {"video": embeddings(**changes)})
