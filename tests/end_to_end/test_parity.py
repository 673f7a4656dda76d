# SPDX-License-Identifier: Apache-2.0
"""Our network and processing in vLLM's engine, against transformers, in float32.

On the trained tiny checkpoint and on random ones of other shapes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from vllm import LLM
from vllm.multimodal.inputs import (
    MultiModalFeatureSpec,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalSharedField,
    PlaceholderRange,
)

from tests.checkpoints import SHAPES, TINY, write_checkpoint
from tests.engines import (
    STEP_TOKENS,
    Message,
    Oracle,
    ask,
    check_equal,
    engine,
    network_call,
    tokens,
)
from vllm_glm41v_npu.cli.ask import conversation


class Pair(NamedTuple):
    llm: LLM
    oracle: Oracle


def picture(height: int, width: int, seed: int) -> Image.Image:
    """Smooth blobs with noise, so that resizing and position both matter."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = smooth + rng.integers(-20, 21, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def long_text(count: int) -> str:
    """Text of about `count` tokens; digits are one token each in the tiny vocabulary."""
    return "".join(str(digit) for digit in np.random.default_rng(7).integers(0, 10, count))


PICTURES = [picture(100, 150, 1), picture(224, 90, 2), picture(61, 300, 3)]
QUESTION = "What number is written in the picture?"
CASES: dict[str, list[Message]] = {
    "text": conversation([], "Who are you?"),
    "one-picture": conversation(PICTURES[:1], QUESTION),
    "three-pictures": conversation(PICTURES, "What numbers are in the pictures?"),
    "long-text": conversation([], long_text(4000)),
    "long-with-pictures": conversation(PICTURES[1:], long_text(2500)),
}


@pytest.fixture(scope="module", params=["tiny", *(shape.name for shape in SHAPES)])
def pair(request, tmp_path_factory) -> Iterator[Pair]:
    path = TINY if request.param == "tiny" else _random(request.param, tmp_path_factory)
    with engine(path) as llm:
        yield Pair(llm, Oracle(path))


def _random(name: str, tmp_path_factory) -> Path:
    shape = next(shape for shape in SHAPES if shape.name == name)
    return write_checkpoint(shape, tmp_path_factory.mktemp(name))


@pytest.mark.parametrize("case", CASES)
def test_a_request_equals_transformers(pair: Pair, case: str) -> None:
    """Guards the whole path: prompt ids, first log-probabilities, 32 greedy tokens."""
    (output,) = ask(pair.llm, [CASES[case]])
    check_equal(output, pair.oracle.answer(CASES[case]))
    if case.startswith("long"):
        assert len(output.prompt_token_ids or []) > 2 * STEP_TOKENS  # it took several steps


def test_a_mixed_batch_equals_transformers(pair: Pair) -> None:
    """Guards pictures and texts of other requests in the same step."""
    requests = [CASES[name] for name in ("three-pictures", "text", "one-picture")]
    requests.append(conversation([PICTURES[2]], "Read the number."))
    for output, messages in zip(ask(pair.llm, requests), requests, strict=True):
        check_equal(output, pair.oracle.answer(messages))


def test_a_repeated_picture_is_cached(pair: Pair) -> None:
    """Guards prefix caching with pictures: blocks are reused, and the answer stays the same.

    A third request differs in the picture alone, so reusing the first one's blocks would show.
    """
    start = long_text(300)
    same = conversation([PICTURES[0]], start)
    other = conversation([PICTURES[1].resize(PICTURES[0].size)], start)
    first, again, third = (ask(pair.llm, [request])[0] for request in (same, same, other))
    assert (again.num_cached_tokens or 0) > (first.num_cached_tokens or 0)
    check_equal(again, pair.oracle.answer(same))
    check_equal(third, pair.oracle.answer(other))
    assert third.outputs[0].logprobs[0] != again.outputs[0].logprobs[0]


def test_vision_features_equal_transformers(pair: Pair) -> None:
    """Guards the tower alone, several sizes in one batch, within 1e-4."""
    inputs = pair.oracle.inputs(CASES["three-pictures"])
    grid_thw = inputs["image_grid_thw"]
    with torch.inference_mode():
        want = pair.oracle.network.get_image_features(inputs["pixel_values"], grid_thw)
    pixels = still_pixels(pair, inputs["pixel_values"])

    def features(network: Any) -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat(
                list(network.embed_multimodal(pixel_values=pixels, image_grid_thw=grid_thw))
            )

    got = network_call(pair.llm, features)
    torch.testing.assert_close(got, torch.cat(list(want.pooler_output)), atol=1e-4, rtol=1e-4)


def still_pixels(pair: Pair, normalised: torch.Tensor) -> torch.Tensor:
    """uint8 [patches, 3 * 14 * 14] from what transformers' image processor returns."""
    processor = pair.oracle.processor.image_processor
    mean, std = (
        torch.tensor(x).view(1, 3, 1, 1) for x in (processor.image_mean, processor.image_std)
    )
    first_slice = normalised.view(len(normalised), 3, 2, 14, 14)[:, :, 0]
    return ((first_slice * std + mean) * 255).round().to(torch.uint8).flatten(1)


def test_embeddings_as_inputs_equal_pictures(pair: Pair) -> None:
    """Guards `image_embeds`: a picture encoded elsewhere gives the picture's own answer."""
    inputs = pair.oracle.inputs(CASES["one-picture"])
    with torch.inference_mode():
        features = pair.oracle.network.get_image_features(
            inputs["pixel_values"], inputs["image_grid_thw"]
        )
    prompt = pair.oracle.processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    embeds = {
        "image_embeds": torch.cat(list(features.pooler_output)),
        "image_grid_thw": inputs["image_grid_thw"],
    }
    from vllm import SamplingParams

    (output,) = pair.llm.generate(
        [{"prompt": prompt, "multi_modal_data": {"image": embeds}}],
        SamplingParams(temperature=0, max_tokens=32, ignore_eos=True),
        use_tqdm=False,
    )
    assert tokens(output) == pair.oracle.answer(CASES["one-picture"]).tokens


@pytest.mark.parametrize("case", CASES)
def test_positions_equal_transformers(pair: Pair, case: str) -> None:
    """Guards the three-axis positions and the step that decoding goes on with."""
    inputs = pair.oracle.inputs(CASES[case])
    ids, grids = inputs["input_ids"], inputs.get("image_grid_thw")
    want, want_delta = pair.oracle.network.model.get_rope_index(
        ids,
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=grids,
        attention_mask=inputs["attention_mask"],
    )
    features = image_features(ids[0].tolist(), grids, pair.oracle.network.config.image_token_id)
    got, delta = network_call(
        pair.llm, lambda network: network.get_mrope_input_positions(ids[0].tolist(), features)
    )
    assert torch.equal(got, want[:, 0])
    assert delta == want_delta.item()


def image_features(
    ids: list[int], grids: torch.Tensor | None, image_token_id: int
) -> list[MultiModalFeatureSpec]:
    """What the engine knows of the pictures in a prompt."""
    features, token = [], 0
    for number, grid in enumerate([] if grids is None else grids):
        offset = ids.index(image_token_id, token)
        length = int(grid.prod()) // 4
        element = MultiModalFieldElem(data=grid, field=MultiModalSharedField(batch_size=1))
        features.append(
            MultiModalFeatureSpec(
                data=MultiModalKwargsItem({"image_grid_thw": element}),
                modality="image",
                identifier=str(number),
                mm_position=PlaceholderRange(offset=offset, length=length),
            )
        )
        token = offset + length
    return features


@pytest.mark.skipif(
    os.environ.get("TORCH_COMPILE_DISABLE") == "1", reason="needs a C++ compiler (g++)"
)
def test_the_compiled_network_equals_transformers() -> None:
    """Guards what users get by default: vLLM compiles the decoder unless told not to."""
    oracle = Oracle(TINY)
    names = ("text", "three-pictures", "long-with-pictures")
    with engine(TINY, enforce_eager=False) as llm:
        outputs = ask(llm, [CASES[name] for name in names])
    for output, name in zip(outputs, names, strict=True):
        check_equal(output, oracle.answer(CASES[name]))
