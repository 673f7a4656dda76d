# SPDX-License-Identifier: Apache-2.0
"""What the tiny model is asked about a clip of numbers and how it answers."""

from __future__ import annotations

import numpy as np

from tools.tiny.conversation import IMAGE, NO_PICTURE, is_chinese, prompt, wrap

KINDS = ("first", "at", "last", "at")
VIDEO_QUESTIONS = {
    "first": (
        "Which number comes first?",
        "What is the first number in the video?",
        "最先出现的是哪个数字？",
        "视频中第一个数字是什么？",
    ),
    "last": (
        "Which number comes last?",
        "What is the last number in the video?",
        "最后出现的是哪个数字？",
        "视频中最后一个数字是什么？",
    ),
    "at": (
        "Which number is shown at second {second}?",
        "What number do you see at second {second}?",
        "第{second}秒显示的是哪个数字？",
        "视频在第{second}秒显示什么数字？",
    ),
}
# What the reply starts with, in English and in Chinese.
OPENINGS = {
    "first": ("First", "首先"),
    "last": ("Last", "最后"),
    "at": ("At second {second}", "第{second}秒"),
}


def ask(rng: np.random.Generator, kind: str, second: int) -> str:
    pool = VIDEO_QUESTIONS[kind]
    return pool[rng.integers(len(pool))].format(second=second)


def kind_of(question: str) -> str:
    """The kind of a question made by `ask`."""
    if question in VIDEO_QUESTIONS["first"]:
        return "first"
    return "last" if question in VIDEO_QUESTIONS["last"] else "at"


def video_reply(question: str, kind: str, second: int, answer: str) -> str:
    """The text the model is taught to give."""
    chinese = is_chinese(question)
    opening = OPENINGS[kind][chinese].format(second=second)
    if chinese:
        sees, end = "我看到数字", "。"
    else:
        sees, end = f" I see the digit{'s' if len(answer) > 1 else ''}", "."
    return wrap(f"{opening}{sees} {' '.join(answer)}{end}", answer)


def video_prompt(question: str, seconds: list[int], system: str = "") -> str:
    """The chat template's result with <|video|> expanded to a picture and a second a pair."""
    pairs = "".join(f"{IMAGE}{second}" for second in seconds)
    return prompt(f"<|begin_of_video|>{pairs}<|end_of_video|>{question}", 0, system)


def next_prompt(question: str) -> str:
    """What the chat template adds for a further question, after the <|user|> that ends a reply."""
    return f"\n{question}<|assistant|>\n"


def no_video(question: str) -> str:
    """The reply to a question about a clip that is not there."""
    return wrap(*NO_PICTURE[is_chinese(question)])
