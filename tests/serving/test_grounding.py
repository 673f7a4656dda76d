# SPDX-License-Identifier: Apache-2.0
"""Boxes in answers: found in every form the model writes, in pixels, and drawn."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageOps

from tests.checkpoints import TINY
from vllm_glm41v_npu.serving.grounding import COLOURS, Box, draw_boxes, find_boxes

CAT, DOG = Box(10, 20, 300, 400), Box(500, 0, 1000, 999.5)

FOUND = {
    "plain": ("The cat is at [10, 20, 300, 400].", [CAT]),
    "nested": ("[[10,20,300,400]]", [CAT]),
    "marked": ("<answer>It is <|begin_of_box|>[[10,20,300,400]]<|end_of_box|>.</answer>", [CAT]),
    "several": ("[[10,20,300,400],[500,0,1000,999.5]]", [CAT, DOG]),
    "one after another": ("cat [10,20,300,400], dog [500,0,1000,999.5]", [CAT, DOG]),
    "marked one by one": (
        "<|begin_of_box|>[10,20,300,400]<|end_of_box|> and "
        "<|begin_of_box|>[500,0,1000,999.5]<|end_of_box|>",
        [CAT, DOG],
    ),
    "only what is marked": ("Of [1,2,3,4]: <|begin_of_box|>[10,20,300,400]<|end_of_box|>", [CAT]),
    "not of the thinking": ("<think>[1,2,3,4]</think><answer>[10,20,300,400]</answer>", [CAT]),
    "cut off": ("<|begin_of_box|>[[10,20,300,400],[500,0,", [CAT]),
    "JSON": (
        '```json\n[{"bbox_2d": [10, 20, 300, 400], "label": "cat"},\n'
        '{"label": "dog", "bbox_2d": [500, 0, 1000, 999.5]}]\n```',
        [CAT._replace(label="cat"), DOG._replace(label="dog")],
    ),
    "JSON, grouped": (
        '{"name": "pets", "boxes": [[10,20,300,400], {"box": [500,0,1000,999.5]}]}',
        [CAT._replace(label="pets"), DOG._replace(label="pets")],
    ),
    "single quotes": ("{'bbox_2d': [10, 20, 300, 400], 'label': 'cat'}", [CAT]),
    "corners turned round": ("[300, 400, 10, 20]", [CAT]),
    "none": ("There is no cat: [1], [2, 3], {}, [1,2,3,4,5], [true,0,1,1], [1,2,3,1001]", []),
    "broken": ("[[[[{{[10,20,300,400", []),
    "very deep": ("[" * 5000, []),
}


@pytest.mark.parametrize("form", FOUND)
def test_boxes_are_found(form: str) -> None:
    """Guards every form of boxes, and against lists that are none."""
    answer, boxes = FOUND[form]
    assert find_boxes(answer) == boxes


def test_pixels() -> None:
    """Guards the scale of each side, and the far corner."""
    assert CAT.pixels(2000, 500) == (20, 10, 600, 200)
    assert Box(0, 0, 1000, 1000).pixels(333, 77) == (0, 0, 333, 77)


@settings(deadline=None)
@given(st.text('[]{},:"0123456789.- cat<|begin_of_box|>', max_size=80))
def test_boxes_lie_within_the_picture(answer: str) -> None:
    """Guards against an exception, or a box outside of the picture, for any answer."""
    for box in find_boxes(answer):
        left, top, right, bottom = box.pixels(640, 480)
        assert 0 <= left <= right <= 640
        assert 0 <= top <= bottom <= 480


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_drawing(mode: str) -> None:
    """Guards the overlay: on a copy, where the boxes are and nowhere else."""
    picture = Image.new(mode, (400, 200))
    before = picture.copy()
    drawn = draw_boxes(picture, [Box(100, 100, 500, 500, "cat"), Box(600, 200, 990, 900)])
    assert ImageChops.difference(picture.convert("RGB"), before.convert("RGB")).getbbox() is None
    assert (drawn.mode, drawn.size) == ("RGB", (400, 200))
    assert drawn.getpixel((40, 60)) == tuple(bytes.fromhex(COLOURS[0][1:]))
    assert drawn.getpixel((396, 150)) == tuple(bytes.fromhex(COLOURS[1][1:]))
    assert drawn.getbbox() == (40, 20, 397, 181)
    assert drawn.crop((201, 0, 240, 200)).getbbox() is None


def test_drawing_turns_photos() -> None:
    """Guards boxes on photos of a telephone, which the model sees upright."""
    with Image.open(TINY.parent / "pictures" / "turned-by-exif.jpg") as photo:
        upright = ImageOps.exif_transpose(photo)
        assert upright.size != photo.size
        assert draw_boxes(photo, []).tobytes() == upright.convert("RGB").tobytes()
