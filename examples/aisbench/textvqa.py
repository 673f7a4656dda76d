# SPDX-License-Identifier: Apache-2.0
"""The tiny checkpoint's held-out pictures as a data set in TextVQA's format, and answers to it.

AISBench reads a file of questions, one JSON object a line, and beside it a file of annotations,
which has ten people's answers to each question.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

SUFFIX = " Answer the question using a single word or phrase."
"""The sentence that AISBench's configuration for TextVQA puts after each question.

The tiny checkpoint was not trained on it, and reads worse after it.
"""

PEOPLE = 10
QUESTIONS, ANNOTATIONS = "textvqa_val.jsonl", "textvqa_val_annotations.json"


class Item(NamedTuple):
    """A picture's file, a question about it, and the right answer."""

    picture: Path
    question: str
    answer: str


def write_set(folder: Path, count: int) -> Path:
    """Write `count` pictures with their questions into `folder`; returns the file of questions."""
    from tools.tiny.number_pictures import QUESTIONS as ASKED
    from tools.tiny.number_pictures import written_numbers

    items = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, (picture, answer) in enumerate(written_numbers("heldout", count)):
        path = folder.resolve() / f"{number}.png"
        picture.save(path)
        items.append(Item(path, ASKED[number % len(ASKED)], answer))
    return write_items(folder, items)


def write_items(folder: Path, items: Sequence[Item]) -> Path:
    """Write the two files; returns the first one's path."""
    lines, annotations = [], []
    for number, item in enumerate(items):
        line = {"image": str(item.picture), "question": item.question, "question_id": number}
        lines.append(json.dumps(line) + "\n")
        answers = [{"answer": item.answer, "answer_id": person} for person in range(PEOPLE)]
        annotations.append({"question_id": number, "answers": answers})
    (folder / ANNOTATIONS).write_text(json.dumps({"annotations": annotations}))
    questions = folder.resolve() / QUESTIONS
    questions.write_text("".join(lines))
    return questions


def read_items(questions: Path) -> list[Item]:
    """Return the items that `write_items` wrote."""
    annotations = json.loads((questions.parent / ANNOTATIONS).read_text())["annotations"]
    answers = {entry["question_id"]: entry["answers"][0]["answer"] for entry in annotations}
    lines = map(json.loads, questions.read_text().splitlines())
    return [
        Item(Path(line["image"]), line["question"], answers[line["question_id"]]) for line in lines
    ]


def offline_accuracy(model: str, questions: Path, suffix: str, max_tokens: int) -> float:
    """Return the percentage of right answers to the same prompts without a server, greedy."""
    from vllm import LLM, SamplingParams

    from vllm_glm41v_npu.cli.ask import conversation
    from vllm_glm41v_npu.serving.thinking import split

    items = read_items(questions)
    llm = LLM(model, max_model_len=4096, max_num_seqs=32, limit_mm_per_prompt={"image": 1})
    outputs = llm.chat(
        [conversation([Image.open(item.picture)], item.question + suffix) for item in items],
        SamplingParams(temperature=0, max_tokens=max_tokens),
        use_tqdm=False,
    )
    right = sum(
        split(output.outputs[0].text)[1].strip() == item.answer
        for output, item in zip(outputs, items, strict=True)
    )
    return 100 * right / len(items)
