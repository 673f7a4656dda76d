# SPDX-License-Identifier: Apache-2.0
"""Boxes in answers: found, turned into pixels, and drawn.

GLM-4.1V gives a box as [x1, y1, x2, y2], left, top, right and bottom in thousandths of the
picture's width and height. It writes one or several, nested in lists or in JSON objects with a
label, and mostly between `<|begin_of_box|>` and `<|end_of_box|>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import cycle
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

from vllm_glm41v_npu.serving.thinking import BOX, END_BOX, split

SCALE = 1000
LABELS = ("label", "name", "category", "object")
COLOURS = ("#e6194b", "#0082c8", "#3cb44b", "#f58231", "#911eb4", "#008080")

_MARKED = re.compile(f"{re.escape(BOX)}(.*?)(?:{re.escape(END_BOX)}|$)", re.DOTALL)
_BEGIN = re.compile(r"[\[{]")


class Box(NamedTuple):
    """A box in thousandths of the picture's sides: 0 <= x1 <= x2 <= 1000, and y likewise."""

    x1: float
    y1: float
    x2: float
    y2: float
    label: str | None = None

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return (left, top, right, bottom) in a picture of width x height pixels, as Pillow crops.

        For a photo, give the upright width and height: those of `PIL.ImageOps.exif_transpose`.
        """
        return (
            round(self.x1 * width / SCALE),
            round(self.y1 * height / SCALE),
            round(self.x2 * width / SCALE),
            round(self.y2 * height / SCALE),
        )


def find_boxes(answer: str) -> list[Box]:
    """Return the boxes of an answer, in its order, and none of its thinking.

    Where the answer has markers, only lists between them count; elsewhere every list of four
    numbers does. A list with a number outside of 0 to 1000 is no box. Corners in the other order
    are swapped.
    """
    content = split(answer, keep="boxes")[1]
    texts = _MARKED.findall(content) if BOX in content else [content]
    return [box for text in texts for value in _values(text) for box in _boxes(value, None)]


def draw_boxes(picture: Image.Image, boxes: Iterable[Box]) -> Image.Image:
    """Return a copy of `picture`, in RGB, with every box and its label (else its number, from 1).

    It is turned upright by its EXIF orientation, as the model has seen it.
    """
    drawn = ImageOps.exif_transpose(picture).convert("RGB")
    pen = ImageDraw.Draw(drawn)
    line = max(2, round(min(drawn.size) / 200))
    font = ImageFont.load_default(size=max(12, 6 * line))
    for number, (box, colour) in enumerate(zip(boxes, cycle(COLOURS), strict=False), 1):
        left, top, right, bottom = box.pixels(*drawn.size)
        pen.rectangle((left, top, right, bottom), outline=colour, width=line)
        text, place = box.label or str(number), (left + 2 * line, top + line)
        pen.rectangle(pen.textbbox(place, text, font=font), fill=colour)
        pen.text(place, text, fill="white", font=font)
    return drawn


def _values(text: str) -> Iterator[Any]:
    """Yield every JSON list and object in `text`; for one that is broken off, those within it."""
    decoder = json.JSONDecoder()
    place = 0
    while begin := _BEGIN.search(text, place):
        try:
            value, place = decoder.raw_decode(text, begin.start())
        except RecursionError:  # a model that repeats a bracket without end
            return
        except ValueError:
            place = begin.end()
        else:
            yield value


def _boxes(value: Any, label: str | None) -> Iterator[Box]:
    if isinstance(value, dict):
        named = (value[key] for key in LABELS if isinstance(value.get(key), str))
        label, value = next(named, label), list(value.values())
    elif _is_box(value):
        left, right = sorted(value[::2])
        top, bottom = sorted(value[1::2])
        yield Box(left, top, right, bottom, label)
        return
    if isinstance(value, list):
        for item in value:
            yield from _boxes(item, label)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_thousandth, value))


def _is_thousandth(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= SCALE
