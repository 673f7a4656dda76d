# SPDX-License-Identifier: Apache-2.0
"""Whatever the cache holds, and however the prompt comes, the outputs are the same."""

from __future__ import annotations

import random
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vllm.config import ModelConfig
from vllm.multimodal.cache import MultiModalProcessorOnlyCache

from tests.processing.conftest import MakeProcessor
from tests.processing.oracle import random_picture
from tests.processing.test_processor import IMAGE, assert_same_outputs, run, tensors


def random_data(rng: random.Random) -> Any:
    """A picture in one of the forms a request may carry."""
    picture = random_picture(rng.randint(1, 90), rng.randint(60, 150), rng.randint(0, 10**6))
    return rng.choice([picture, picture.convert("L"), np.array(picture)])


@pytest.mark.parametrize("hit_rate", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("as_tokens", [False, True])
def test_cached_outputs_are_the_computed_ones(
    hit_rate: float, as_tokens: bool, make_processor: MakeProcessor, model_config: ModelConfig
) -> None:
    """Pictures out of the cache take the place, tokens or order of others."""
    cache = MultiModalProcessorOnlyCache(model_config)
    plain, cached = make_processor(), make_processor(cache=cache)
    rng = random.Random(f"{hit_rate}{as_tokens}")
    seen = [random_data(rng) for _ in range(3)]
    for data in seen:
        run(cached, IMAGE, data)
    for _ in range(20):
        pictures = [
            rng.choice(seen) if rng.random() < hit_rate else random_data(rng)
            for _ in range(rng.randint(1, 5))
        ]
        kwargs = rng.choice([{}, {"max_pixels": 25088}])
        prompt: str | list[int] = "".join(
            rng.choice(["", "a", "what? "]) + rng.choice([IMAGE, "<|image|>"]) for _ in pictures
        )
        expected = run(plain, prompt, pictures, **kwargs)
        if as_tokens:
            prompt = plain.info.get_tokenizer().encode(prompt)
        assert_same_outputs(run(cached, prompt, pictures, **kwargs), expected)


def test_cache_is_hit(
    make_processor: MakeProcessor,
    model_config: ModelConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A picture that was seen is resized again."""
    processor = make_processor(cache=MultiModalProcessorOnlyCache(model_config))
    picture = random_picture(60, 90)
    run(processor, IMAGE, picture)
    monkeypatch.setattr(processor, "_process_pictures", lambda *args: pytest.fail("missed"))
    run(processor, IMAGE, picture.copy())


def test_orientation_tells_pictures_apart(
    make_processor: MakeProcessor, model_config: ModelConfig
) -> None:
    """Two PIL pictures with the same pixels and other EXIF orientations share a cache entry."""
    processor = make_processor(cache=MultiModalProcessorOnlyCache(model_config))
    grids = []
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        buffer = BytesIO()
        random_picture(60, 120).save(buffer, format="PNG", exif=exif)
        outputs = run(processor, IMAGE, Image.open(buffer))
        (grid,) = tensors(outputs, "image_grid_thw")
        grids.append(grid.tolist())
    assert grids == [[1, 4, 8], [1, 8, 4]]
