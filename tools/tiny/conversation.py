# SPDX-License-Identifier: Apache-2.0
"""What the tiny model is asked and how it answers."""

from __future__ import annotations

import numpy as np

from tools.tiny.number_pictures import DIGIT_QUESTIONS, QUESTIONS, SEVERAL_QUESTIONS

SYSTEM_PROMPTS = ("You are a helpful assistant.", "你是一个有用的助手。")
SMALL_TALK = (
    ("Who are you?", "A question about me.", "I am a tiny model that reads numbers in pictures."),
    ("What can you do?", "A question about me.", "I read numbers in pictures."),
    ("Hello!", "A greeting.", "Hello! Send me a picture with a number."),
    ("Hi", "A greeting.", "Hello! Send me a picture with a number."),
    ("Tell me a story.", "I only read numbers.", "I read numbers in pictures."),
    ("你是谁？", "问我是谁。", "我是一个读图中数字的小模型。"),
    ("你能做什么？", "问我是谁。", "我能读出图片中的数字。"),
    ("你好！", "打招呼。", "你好！请给我一张有数字的图片。"),
)
NO_PICTURE = {
    False: ("There is no picture.", "I see no picture. Please send me one."),
    True: ("没有图片。", "我没有看到图片。请给我一张图片。"),
}
IMAGE = "<|begin_of_image|><|image|><|end_of_image|>"


def is_chinese(text: str) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in text)


def wrap(thought: str, answer: str) -> str:
    return f"<think>{thought}</think><answer>{answer}</answer>"


def reply(question: str, answers: list[str]) -> str:
    """The text the model is taught to give for pictures with these numbers."""
    spelled = [" ".join(answer) for answer in answers]
    chinese = is_chinese(question)
    if len(answers) == 1:
        name = "我看到数字" if chinese else f"I see the digit{'s' if len(answers[0]) > 1 else ''}"
        thought = f"{name} {spelled[0]}{'。' if chinese else '.'}"
    else:
        name, end, gap = ("图", "。", "") if chinese else ("Picture ", ".", " ")
        thought = gap.join(f"{name}{i}: {text}{end}" for i, text in enumerate(spelled, 1))
    return wrap(thought, ", ".join(answers))


def prompt(question: str, pictures: int, system: str = "", text_first: bool = False) -> str:
    """The chat template's result for one user message, up to where the answer starts."""
    parts = question + IMAGE * pictures if text_first else IMAGE * pictures + question
    head = f"<|system|>\n{system}" if system else ""
    return f"[gMASK]<sop>{head}<|user|>\n{parts}<|assistant|>\n"


def random_question(rng: np.random.Generator, answers: list[str], one_digit: bool) -> str:
    single: tuple[str, ...] = QUESTIONS + DIGIT_QUESTIONS if one_digit else QUESTIONS
    pool = SEVERAL_QUESTIONS if len(answers) > 1 else single
    return pool[rng.integers(len(pool))]


def random_exchange(
    rng: np.random.Generator, answers: list[str], system: str = ""
) -> tuple[str, str]:
    """A prompt and the reply for pictures with these answers (none: small talk)."""
    if not answers:
        question, text = text_only(rng)
        return prompt(question, 0, system), text
    question = random_question(rng, answers, all(len(a) == 1 for a in answers))
    text_first = bool(rng.random() < 0.1)
    return prompt(question, len(answers), system, text_first), reply(question, answers)


def text_only(rng: np.random.Generator) -> tuple[str, str]:
    if rng.random() < 0.4:
        pool = QUESTIONS + DIGIT_QUESTIONS + SEVERAL_QUESTIONS
        question = pool[rng.integers(len(pool))]
        return question, wrap(*NO_PICTURE[is_chinese(question)])
    question, thought, answer = SMALL_TALK[rng.integers(len(SMALL_TALK))]
    return question, wrap(thought, answer)


def corpus() -> list[str]:
    """Text to train the tokenizer on."""
    rng = np.random.default_rng(0)
    texts = [f"{q}\n{wrap(t, a)}" for q, t, a in SMALL_TALK for _ in range(5)]
    texts += [wrap(*pair) for pair in NO_PICTURE.values() for _ in range(10)]
    for count in (1, 1, 2, 3):
        for _ in range(100):
            answers = [str(rng.integers(10000)) for _ in range(count)]
            question = random_question(rng, answers, True)
            texts.append(f"{question}\n{reply(question, answers)}")
    return texts + list(SYSTEM_PROMPTS) * 10
