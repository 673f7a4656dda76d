# SPDX-License-Identifier: Apache-2.0
"""Held-out accuracy of the tiny checkpoint through transformers (float32, greedy).

OMP_NUM_THREADS=1 python -m tools.tiny.evaluate assets/glm41v-tiny
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, Glm4vForConditionalGeneration
from transformers.video_utils import VideoMetadata

from tools.tiny.clips import through_file
from tools.tiny.number_clips import NumberClip, clip_questions
from tools.tiny.number_pictures import (
    DIGIT_QUESTIONS,
    QUESTIONS,
    SEVERAL_QUESTIONS,
    handwritten_digits,
    written_numbers,
)
from tools.tiny.video_talk import VIDEO_QUESTIONS, kind_of

ANSWER = re.compile(r"<think>.*</think><answer>(.*)</answer>", re.DOTALL)
MAX_NEW_TOKENS = 64
KIND_NAMES = {"first": "the first", "last": "the last", "at": "a second"}


class Reader:
    """Asks the checkpoint in `folder` about pictures and clips through transformers."""

    def __init__(self, folder: Path):
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = Glm4vForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self.model.eval()

    def prompt(self, question: str, media: Sequence[str]) -> str:
        """The chat template's result; `media` has "image" or "video" for each that is sent."""
        content = [*({"type": kind} for kind in media), {"type": "text", "text": question}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )

    @torch.inference_mode()
    def generate(self, texts: list[str], **media: Any) -> list[str]:
        inputs = self.processor(text=texts, padding=True, return_tensors="pt", **media)
        output = self.model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        return self.processor.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )

    def ask(self, requests: Sequence[tuple[str, Sequence[Image.Image]]]) -> list[str]:
        """The replies, one a request of (question, pictures); tags kept, stop token dropped."""
        texts = [self.prompt(question, ["image"] * len(sent)) for question, sent in requests]
        images = [picture for _, sent in requests for picture in sent]
        return self.generate(texts, images=images or None)

    def ask_all(
        self, requests: Sequence[tuple[str, Sequence[Image.Image]]], batch: int = 32
    ) -> Iterator[str]:
        for i in range(0, len(requests), batch):
            yield from self.ask(requests[i : i + batch])

    def ask_video(self, requests: Sequence[tuple[str, np.ndarray, float]]) -> list[str]:
        """The replies, one a request of (question, frames, frames a second).

        Frames are uint8 [frames, height, width, 3], all of the clip: transformers samples them.
        """
        metadata = [
            VideoMetadata(total_num_frames=len(frames), fps=fps, duration=len(frames) / fps)
            for _, frames, fps in requests
        ]
        return self.generate(
            [self.prompt(question, ["video"]) for question, _, _ in requests],
            videos=[frames for _, frames, _ in requests],
            video_metadata=metadata,
            do_sample_frames=True,
        )

    def ask_all_videos(
        self, requests: Sequence[tuple[str, np.ndarray, float]], batch: int = 16
    ) -> Iterator[str]:
        for i in range(0, len(requests), batch):
            yield from self.ask_video(requests[i : i + batch])


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


def heldout_videos(count: int, seed: int = 0) -> list[tuple[str, NumberClip, str]]:
    """Questions, clips of the held-out split and right answers."""
    return clip_questions("heldout", count, seed)


def print_row(name: str, read: Sequence[tuple[str, str]]) -> None:
    """A row for these (answer read, right answer)."""
    right = sum(a == b for a, b in read) / max(1, len(read))
    print(f"| {name} | {len(read)} | {right:.2%} |")


def print_pictures(reader: Reader, count: int, show_errors: bool) -> None:
    for name, items in heldout_sets(count).items():
        replies = reader.ask_all([(question, pictures) for question, pictures, _ in items])
        read = [(final_answer(r), answer) for r, (_, _, answer) in zip(replies, items, strict=True)]
        print_row(name, read)
        for length in range(1, 5) if name == "written numbers" else ():
            print_row(f"... of {length} digits", [pair for pair in read if len(pair[1]) == length])
        if show_errors:
            print(Counter((a, b) for a, b in read if a != b))


def print_videos(reader: Reader, count: int, seed: int, show_errors: bool) -> None:
    """Rows for clips as drawn, by kind of question, and for the same clips through two codecs."""
    items = heldout_videos(count, seed)
    for codec, form in ((None, ""), ("libx264", "mp4"), ("mpeg4", "avi")):
        clips = [through_file(clip, codec, form) if codec else clip for _, clip, _ in items]
        requests = [
            (question, clip.frames, clip.fps)
            for (question, _, _), clip in zip(items, clips, strict=True)
        ]
        replies = reader.ask_all_videos(requests)
        read = [(final_answer(r), answer) for r, (_, _, answer) in zip(replies, items, strict=True)]
        print_row(f"clips, {codec} in {form}" if codec else "clips, frames as drawn", read)
        for kind in VIDEO_QUESTIONS:
            some = [
                pair
                for pair, (question, _, _) in zip(read, items, strict=True)
                if kind_of(question) == kind
            ]
            print_row(f"... asked for {KIND_NAMES[kind]}", some)
        if show_errors:
            print(Counter((a, b) for a, b in read if a != b))


def main() -> None:
    parser = argparse.ArgumentParser(description="Held-out accuracy through transformers.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="written numbers")
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--clip-seed", type=int, default=0)
    parser.add_argument("--show-errors", action="store_true")
    args = parser.parse_args()
    reader = Reader(args.folder)
    print("| held-out set | requests | right |\n| --- | ---: | ---: |")
    if args.count:
        print_pictures(reader, args.count, args.show_errors)
    if args.clips:
        print_videos(reader, args.clips, args.clip_seed, args.show_errors)


if __name__ == "__main__":
    main()
