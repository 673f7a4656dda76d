# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import pytest
from transformers.models.glm4v.image_processing_glm4v import smart_resize as hf_smart_resize

from tests.processing.oracle import GEOMETRY, LIMITS
from vllm_glm41v_npu.processing.grid import PixelLimits, largest_picture, smart_resize

LIMIT_CASES = [
    LIMITS,
    PixelLimits(112 * 112, 9_633_792),  # preprocessor_config.json of July 2025
    PixelLimits(12544, 50176),
    PixelLimits(25088, 25088),
    PixelLimits(1, 1568),
    PixelLimits(200_000, 313_600),
    PixelLimits(1_000_000, 1_100_000),
]


def random_size(rng: random.Random) -> tuple[int, int]:
    """Sides from 1 to 20,000, as often small as large."""
    return int(10 ** rng.uniform(0, 4.3)), int(10 ** rng.uniform(0, 4.3))


@pytest.mark.parametrize("limits", LIMIT_CASES)
def test_smart_resize_is_that_of_transformers(limits: PixelLimits) -> None:
    """A size off by one factor gives other patches and another number of tokens."""
    rng = random.Random(0)
    for _ in range(2000):
        height, width = random_size(rng)
        frames = rng.choice([None, 2, 3, 8])
        try:
            expected = hf_smart_resize(
                frames or 2,
                height,
                width,
                min_pixels=limits.min_pixels,
                max_pixels=limits.max_pixels,
            )
        except ValueError:
            with pytest.raises(ValueError, match="side ratio"):
                smart_resize(height, width, GEOMETRY, limits, frames)
        else:
            assert smart_resize(height, width, GEOMETRY, limits, frames) == expected


@pytest.mark.parametrize("limits", LIMIT_CASES)
def test_no_picture_is_larger_than_the_largest(limits: PixelLimits) -> None:
    """Memory set aside at start-up would not suffice for some later picture."""

    def num_tokens(height: int, width: int) -> int:
        return GEOMETRY.num_tokens(GEOMETRY.grid(*smart_resize(height, width, GEOMETRY, limits)))

    most = num_tokens(*largest_picture(GEOMETRY, limits))
    rng = random.Random(1)
    for _ in range(20_000):
        height = int(10 ** rng.uniform(0, 3.3))
        width = int(height * 200 ** rng.uniform(-1, 1))
        if width and max(height, width) <= 199 * min(height, width):
            assert num_tokens(height, width) <= most, (height, width)


def test_largest_picture_of_the_checkpoint() -> None:
    """The budget of GLM-4.1V-9B-Thinking is 15000 / 2 tokens, and 75 x 100 blocks reach it."""
    assert largest_picture(GEOMETRY, LIMITS) == (75 * 28, 100 * 28)
