# SPDX-License-Identifier: Apache-2.0
"""Our network and processing in vLLM's engine, against transformers in float32.

On the trained tiny checkpoint and on random ones of other shapes, eagerly; test_modes.py has the
engine's other modes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from vllm import LLM, SamplingParams
from vllm.multimodal.inputs import (
    MultiModalFeatureSpec,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalSharedField,
    PlaceholderRange,
)

from tests.checkpoints import CHIP_SHAPES, SHAPES
from tests.end_to_end.cases import CASES, PICTURES, QUESTION, long_text
from tests.engines import NEW_TOKENS, STEP_TOKENS, Oracle, ask, check, engine, network_call
from tests.lane import ALL_LANES, DTYPE, EXACT, ON_CPU, OTHER_DTYPES
from vllm_glm41v_npu.cli.ask import conversation

pytestmark = ALL_LANES

NAMES = ["tiny", *(shape.name for shape in (SHAPES if ON_CPU else CHIP_SHAPES))]
RUNS = [(name, DTYPE) for name in NAMES] + [("tiny", dtype) for dtype in OTHER_DTYPES]


ROUNDING = {"float16": 0.005, "bfloat16": 0.016}
"""How far features may be off, of their norm: twice what float16 gives, a third more than bfloat16.

Another cubic kernel for the position table (a = -0.5) gives 0.016 to 0.055 in float16, and at least
0.022 in bfloat16.
"""


class Pair(NamedTuple):
    llm: LLM
    oracle: Oracle
    dtype: str

    def check(self, output: Any, messages: list[dict[str, Any]]) -> None:
        check(output, messages, self.oracle, self.dtype)


@pytest.fixture(scope="module", params=RUNS, ids="-".join)
def pair(request, checkpoint: Callable[[str], Path]) -> Iterator[Pair]:
    name, dtype = request.param
    path = checkpoint(name)
    with engine(path, dtype=dtype) as llm:
        yield Pair(llm, Oracle(path), dtype)


@pytest.mark.parametrize("case", CASES)
def test_a_request_equals_transformers(pair: Pair, case: str) -> None:
    """Guards the whole path: prompt ids, first log-probabilities, 32 greedy tokens."""
    (output,) = ask(pair.llm, [CASES[case]])
    pair.check(output, CASES[case])
    if case.startswith("long"):
        assert len(output.prompt_token_ids or []) > 2 * STEP_TOKENS  # it took several steps


def test_a_mixed_batch_equals_transformers(pair: Pair) -> None:
    """Guards pictures, videos and texts of other requests in the same step."""
    requests = [CASES[name] for name in ("three-pictures", "text", "two-videos", "one-picture")]
    requests.append(conversation([PICTURES[2]], "Read the number."))
    for output, messages in zip(ask(pair.llm, requests), requests, strict=True):
        pair.check(output, messages)


def test_a_repeated_picture_is_cached(pair: Pair) -> None:
    """Guards prefix caching with pictures: blocks are reused, and the answer stays the same.

    A third request differs in the picture alone, so reusing the first one's blocks would show.
    """
    start = long_text(300)
    same = conversation([PICTURES[0]], start)
    other = conversation([PICTURES[1].resize(PICTURES[0].size)], start)
    first, again, third = (ask(pair.llm, [request])[0] for request in (same, same, other))
    assert (again.num_cached_tokens or 0) > (first.num_cached_tokens or 0)
    pair.check(again, same)
    pair.check(third, other)
    assert third.outputs[0].logprobs[0] != again.outputs[0].logprobs[0]


def test_vision_features_equal_transformers(pair: Pair) -> None:
    """Guards the tower alone, several sizes in one batch, within 1e-4 (or ROUNDING)."""
    inputs = pair.oracle.inputs(CASES["three-pictures"])
    grid_thw = inputs["image_grid_thw"]
    with torch.inference_mode():
        want = pair.oracle.network.get_image_features(inputs["pixel_values"], grid_thw)
    pixels = raw_pixels(pair, inputs["pixel_values"], frames=1)
    assert_features(pair, want.pooler_output, pixel_values=pixels, image_grid_thw=grid_thw)


def test_features_of_two_videos_equal_transformers(pair: Pair) -> None:
    """Guards two videos of different sizes in one batch, and what moves between two frames.

    vLLM's own class resizes the position table of one to the other's grid: 6.7% off.
    """
    inputs = pair.oracle.inputs(CASES["two-videos"])
    grid_thw = inputs["video_grid_thw"]
    assert len({tuple(grid[1:]) for grid in grid_thw.tolist()}) == 2
    with torch.inference_mode():
        want = pair.oracle.network.get_video_features(inputs["pixel_values_videos"], grid_thw)
    pixels = raw_pixels(pair, inputs["pixel_values_videos"], frames=2)
    assert_features(pair, want.pooler_output, pixel_values_videos=pixels, video_grid_thw=grid_thw)


def assert_features(pair: Pair, want: Iterable[torch.Tensor], **inputs: torch.Tensor) -> None:
    def features(network: Any) -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat(list(network.embed_multimodal(**inputs))).float().cpu()

    got, expected = network_call(pair.llm, features), torch.cat(list(want))
    if EXACT:
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    else:
        assert (got - expected).norm() < ROUNDING[pair.dtype] * expected.norm()


def raw_pixels(pair: Pair, normalised: torch.Tensor, frames: int) -> torch.Tensor:
    """uint8 [patches, frames * 14 * 14 * 3] from what transformers' processors return."""
    processor = pair.oracle.processor.image_processor
    channels = (1, 3, 1, 1)
    mean, std = (
        torch.tensor(x).view(channels) for x in (processor.image_mean, processor.image_std)
    )
    slices = normalised.view(len(normalised), 3, 2, 14 * 14)[:, :, :frames]
    pixels = ((slices * std + mean) * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).flatten(1)  # a frame after the other, channels last


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
    (output,) = pair.llm.generate(
        [{"prompt": prompt, "multi_modal_data": {"image": embeds}}],
        SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=1),
        use_tqdm=False,
    )
    pair.check(output, CASES["one-picture"])


@pytest.mark.parametrize("case", CASES)
def test_positions_equal_transformers(pair: Pair, case: str) -> None:
    """Guards the three-axis positions and the step that decoding goes on with."""
    inputs = pair.oracle.inputs(CASES[case])
    ids = inputs["input_ids"]
    grids = {f"{kind}_grid_thw": inputs.get(f"{kind}_grid_thw") for kind in ("image", "video")}
    want, want_delta = pair.oracle.network.model.get_rope_index(
        ids,
        mm_token_type_ids=inputs["mm_token_type_ids"],
        attention_mask=inputs["attention_mask"],
        **grids,
    )
    features = media_features(inputs)
    got, delta = network_call(
        pair.llm, lambda network: network.get_mrope_input_positions(ids[0].tolist(), features)
    )
    assert torch.equal(got, want[:, 0])
    assert delta == want_delta.item()


def media_features(inputs: dict[str, torch.Tensor]) -> list[MultiModalFeatureSpec]:
    """What the engine knows of the pictures and videos in a prompt."""
    kinds = inputs["mm_token_type_ids"][0]  # 1 for tokens of pictures, 2 for those of videos
    features = []
    for kind, modality in ((1, "image"), (2, "video")):
        places = (kinds == kind).nonzero().flatten()
        for grid in inputs.get(f"{modality}_grid_thw", torch.empty(0, 3)):
            own, places = places.split([count := int(grid.prod()) // 4, len(places) - count])
            first, last = int(own[0]), int(own[-1])
            is_embed = kinds[first : last + 1] == kind
            element = MultiModalFieldElem(data=grid, field=MultiModalSharedField(batch_size=1))
            features.append(
                MultiModalFeatureSpec(
                    data=MultiModalKwargsItem({f"{modality}_grid_thw": element}),
                    modality=modality,
                    identifier=f"{modality}-{first}",
                    mm_position=PlaceholderRange(
                        offset=first, length=last + 1 - first, is_embed=is_embed
                    ),
                )
            )
    return features
