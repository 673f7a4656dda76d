# SPDX-License-Identifier: Apache-2.0
"""Twenty answers, and what is thinking and content in each, without the markers of boxes."""

from __future__ import annotations

from typing import NamedTuple


class Answer(NamedTuple):
    text: str
    thinking: str
    content: str


ANSWERS = {
    "usual": Answer(
        "<think>I see the digits 4 0 7.</think><answer>407</answer>",
        "I see the digits 4 0 7.",
        "407",
    ),
    "lines": Answer(
        "<think>\nA stop sign.\n</think>\n\n<answer>\nstop</answer>", "\nA stop sign.\n", "stop"
    ),
    "box": Answer(
        "<think>A cat.</think><answer>It is <|begin_of_box|>a cat<|end_of_box|>.</answer>",
        "A cat.",
        "It is a cat.",
    ),
    "coordinates": Answer(
        "<think>Left.</think><answer><|begin_of_box|>[[10,20,300,400]]<|end_of_box|></answer>",
        "Left.",
        "[[10,20,300,400]]",
    ),
    "chinese": Answer(
        "<think>图中有一只猫。</think><answer>一只猫🐱</answer>", "图中有一只猫。", "一只猫🐱"
    ),
    "no answer tags": Answer("<think>Two.</think>2", "Two.", "2"),
    "no end of answer": Answer("<think>Two.</think><answer>2", "Two.", "2"),
    "no thinking": Answer("A cat on a mat.", "", "A cat on a mat."),
    "no thinking, indented": Answer("\n  A cat.", "", "\n  A cat."),
    "no thinking, tags": Answer("<answer>407</answer>", "", "407"),
    "empty thinking": Answer("<think></think><answer>7</answer>", "", "7"),
    "white space before": Answer(" \n<think>Two.</think><answer>2</answer>", "Two.", "2"),
    "cut off in thinking": Answer("<think>I see the dig", "I see the dig", ""),
    "cut off after thinking": Answer("<think>I see.</think>", "I see.", ""),
    "comparison": Answer(
        "<think>3 < 4, a<b, </thin.</think><answer>3 < 4 <= x</answer>",
        "3 < 4, a<b, </thin.",
        "3 < 4 <= x",
    ),
    "less-than sign": Answer("<think>It is <.</think><answer><</answer>", "It is <.", "<"),
    "html": Answer(
        "<think>A page.</think><answer><a href='x'><b>y</b></a></answer>",
        "A page.",
        "<a href='x'><b>y</b></a>",
    ),
    "tags in thinking": Answer(
        "<think>Put it in <answer> and <|begin_of_box|>.</think><answer>7</answer>",
        "Put it in <answer> and <|begin_of_box|>.",
        "7",
    ),
    "tag within a tag": Answer(
        "<think>Odd.</think><ans<answer>wer>7<|begin<|begin_of_box|>", "Odd.", "<answer>7<|begin"
    ),
    "thinking that comes late": Answer(
        "Well. <think>Hm.</think> 7", "", "Well. <think>Hm.</think> 7"
    ),
}
