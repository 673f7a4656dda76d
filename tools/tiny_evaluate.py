# SPDX-License-Identifier: Apache-2.0
"""Held-out accuracy of the tiny checkpoint through transformers (float32, greedy).

OMP_NUM_THREADS=1 python -m tools.tiny_evaluate assets/glm41v-tiny
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor, Glm4vForConditionalGeneration

from tools.number_pictures import (
    DIGIT_QUESTIONS,
    QUESTIONS,
    SEVERAL_QUESTIONS,
    handwritten_digits,
    written_numbers,
)

ANSWER = re.compile(r"<think>.*</think><answer>(.*)</answer>", re.DOTALL)
MAX_NEW_TOKENS = 64


class Reader:
    """Asks the checkpoint in `folder` about pictures through transformers."""

    def __init__(self, folder: Path):
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = Glm4vForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self.model.eval()

    @torch.inference_mode()
    def ask(self, requests: Sequence[tuple[str, Sequence[Image.Image]]]) -> list[str]:
        """The replies, one a request of (question, pictures); tags kept, stop token dropped."""
        texts = [
            self.processor.apply_chat_template(
                [
                    {
                        "role": "user",
                        "content": [
                            *({"type": "image"} for _ in pictures),
                            {"type": "text", "text": question},
                        ],
                    }
                ],
                add_generation_prompt=True,
            )
            for question, pictures in requests
        ]
        images = [picture for _, pictures in requests for picture in pictures]
        inputs = self.processor(
            text=texts, images=images or None, padding=True, return_tensors="pt"
        )
        output = self.model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        return self.processor.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )

    def ask_all(
        self, requests: Sequence[tuple[str, Sequence[Image.Image]]], batch: int = 32
    ) -> Iterator[str]:
        for i in range(0, len(requests), batch):
            yield from self.ask(requests[i : i + batch])


def final_answer(reply: str) -> str:
    """What stands in <answer>, or "" if the reply is not of the <think><answer> form."""
    match = ANSWER.fullmatch(reply.strip())
    return match[1] if match else ""


def heldout_sets(count: int) -> dict[str, list[tuple[str, list[Image.Image], str]]]:
    """Questions, pictures and right answers of each held-out set."""
    written = written_numbers("heldout", count)
    by_hand = handwritten_digits("heldout")
    triples = [written[i : i + 3] for i in range(0, min(count, 300) - 2, 3)]
    return {
        "written numbers": [
            (QUESTIONS[i % len(QUESTIONS)], [image], answer)
            for i, (image, answer) in enumerate(written)
        ],
        "handwritten digits": [
            (DIGIT_QUESTIONS[i % len(DIGIT_QUESTIONS)], [image], answer)
            for i, (image, answer) in enumerate(by_hand)
        ],
        "three pictures": [
            (
                SEVERAL_QUESTIONS[i % len(SEVERAL_QUESTIONS)],
                [p for p, _ in triple],
                ", ".join(answer for _, answer in triple),
            )
            for i, triple in enumerate(triples)
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Held-out accuracy through transformers.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="written numbers")
    parser.add_argument("--show-errors", action="store_true")
    args = parser.parse_args()
    reader = Reader(args.folder)
    print("| held-out set | pictures | right |\n| --- | ---: | ---: |")
    for name, items in heldout_sets(args.count).items():
        replies = reader.ask_all([(question, pictures) for question, pictures, _ in items])
        read = [(final_answer(r), answer) for r, (_, _, answer) in zip(replies, items, strict=True)]
        print(f"| {name} | {len(items)} | {sum(a == b for a, b in read) / len(items):.2%} |")
        for length in range(1, 5) if name == "written numbers" else ():
            some = [a == b for a, b in read if len(b) == length]
            print(f"| ... of {length} digits | {len(some)} | {sum(some) / len(some):.2%} |")
        if args.show_errors:
            print(Counter((a, b) for a, b in read if a != b))


if __name__ == "__main__":
    main()
