# SPDX-License-Identifier: Apache-2.0
"""The calibration set: what goes through the network to see how large its activations are.

A conversation is a prompt and, where one is known, an answer, and goes through in one prefill. The
model's own greedy answers would cost one pass over all weights for each token, which at the true
size means reading 18 GB from disk; but nearly all tokens that a thinking model computes are of its
answers, so the built-in conversations have answers of the model's form, and a JSONL can bring real
ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from transformers import AutoProcessor
from transformers.video_utils import VideoMetadata, load_video

from vllm_glm41v_npu.processing.media_files import VIDEOS, is_video
from vllm_glm41v_npu.quant.quantizer import builtin
from vllm_glm41v_npu.quant.quantizer.network import Sample
from vllm_glm41v_npu.quant.quantizer.plan import QuantizerError

PIXELS = 1024 * 28 * 28
"""The most pixels of a picture: 1,024 tokens. More would take longer and show no other ranges."""

FRAMES = 16
FRAMES_PER_SECOND = 2.0
"""The rate of the built-in films."""

IMAGE_MARK = "<|begin_of_image|><|image|><|end_of_image|>"
VIDEO_MARK = "<|begin_of_video|><|video|><|end_of_video|>"
"""Media as the model's own template writes them, for a checkpoint without a template."""


@dataclass
class Conversation:
    """One prompt and its answer; either pictures or a film, or neither."""

    question: str
    answer: str = ""
    images: list[Image.Image] = field(default_factory=list)
    frames: list[Image.Image] = field(default_factory=list)
    metadata: VideoMetadata | None = None


@dataclass(frozen=True)
class Calibration:
    """The calibration set as it was read.

    Attributes:
        samples: Processed conversations.
        unreadable: Files that could not be read, each with the reason.
    """

    samples: list[Sample]
    unreadable: tuple[str, ...]


def load(folder: Path, calibration: Path | None, count: int, seed: int) -> Calibration:
    """The calibration set through the processor of the checkpoint in `folder`.

    Args:
        folder: The checkpoint.
        calibration: A directory of pictures and videos, a JSONL file with an object
            `{"image": path or paths, "video": path, "text": ..., "answer": ...}` a line, all
            optional, or None for the built-in set.
        count: The most conversations that are used, evenly chosen.
        seed: Of the built-in set.

    Raises:
        QuantizerError: Nothing can be read, or the checkpoint's processor cannot be loaded.
    """
    unreadable: list[str] = []
    openers: list[Opener]
    if calibration is None:
        openers = [partial(copy, conversation) for conversation in _builtin(seed)]
    elif calibration.is_dir():
        openers = list(_directory(calibration))
    else:
        openers = list(_jsonl(calibration))
    try:
        processor = AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError, ImportError) as error:
        raise QuantizerError(f"{folder}: its processor cannot be loaded: {error}") from error
    samples = []
    for opener in _evenly(openers, count):
        try:
            samples.append(process(processor, opener()))
        except _Unreadable as error:
            unreadable.append(str(error))
    if not samples:
        raise QuantizerError(_nothing(calibration, unreadable))
    return Calibration(samples, tuple(unreadable))


def process(processor: Any, conversation: Conversation) -> Sample:
    """Return a conversation as the network takes it."""
    images, frames = conversation.images, conversation.frames
    inputs: dict[str, Any] = {}
    if images:
        size = dict(processor.image_processor.size)
        size["longest_edge"] = max(size["shortest_edge"], min(size["longest_edge"], PIXELS))
        inputs |= {"images": images, "images_kwargs": {"size": size}}
    if frames:
        pixels = np.stack([np.asarray(frame) for frame in frames])  # [frames, height, width, 3]
        options = {"do_sample_frames": False, "video_metadata": [conversation.metadata]}
        inputs |= {"videos": [pixels], "videos_kwargs": options}
    return dict(
        processor(
            text=[_prompt(processor, conversation) + conversation.answer],
            return_tensors="pt",
            return_mm_token_type_ids=True,
            **inputs,
        )
    )


def _prompt(processor: Any, conversation: Conversation) -> str:
    parts = [{"type": "image"} for _ in conversation.images]
    if conversation.frames:
        parts.append({"type": "video"})
    if processor.chat_template is None:
        marks = {"image": IMAGE_MARK, "video": VIDEO_MARK}
        return "".join(marks[part["type"]] for part in parts) + conversation.question
    content = [*parts, {"type": "text", "text": conversation.question}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, add_generation_prompt=True)


class _Unreadable(Exception):
    """A file of the calibration set cannot be read; the message names it."""


Opener = Callable[[], Conversation]
"""Reads a conversation's files; may raise `_Unreadable`."""


def _builtin(seed: int) -> Iterator[Conversation]:
    for pictures, film, question, answer in builtin.conversations(seed):
        if film:
            metadata = VideoMetadata(
                total_num_frames=len(pictures),
                fps=FRAMES_PER_SECOND,
                duration=len(pictures) / FRAMES_PER_SECOND,
                frames_indices=list(range(len(pictures))),
            )
            yield Conversation(question, answer, frames=pictures, metadata=metadata)
        else:
            yield Conversation(question, answer, images=pictures)


def _directory(folder: Path) -> Iterator[Opener]:
    suffixes = {*Image.registered_extensions(), *VIDEOS}
    paths = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in suffixes)
    for index, path in enumerate(paths):
        if is_video(path):
            question = builtin.FILM_QUESTIONS[index % len(builtin.FILM_QUESTIONS)]
            yield partial(_open, [], path, question, "")
        else:
            question = builtin.QUESTIONS[index % len(builtin.QUESTIONS)]
            yield partial(_open, [path], None, question, "")


def _jsonl(path: Path) -> Iterator[Opener]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # texts may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise QuantizerError(
            f"{path} cannot be read ({error}); give a directory of pictures or a JSONL file."
        ) from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _line(path, number, line)


def _line(path: Path, number: int, line: str) -> Opener:
    where = f"{path}, line {number}"
    try:
        value = json.loads(line)
    except ValueError as error:
        raise QuantizerError(f"{where} is no JSON ({error}).") from error
    known = {"image", "video", "text", "answer"}
    if not isinstance(value, dict) or not value or not value.keys() <= known:
        raise QuantizerError(
            f"{where}: expected an object with some of {', '.join(sorted(known))}, found {line!r}."
        )
    listed = value.get("image") or []
    images = [path.parent / name for name in ([listed] if isinstance(listed, str) else listed)]
    video = path.parent / value["video"] if value.get("video") else None
    if images and video:
        raise QuantizerError(f"{where} has pictures and a video; the model takes either.")
    return partial(_open, images, video, value.get("text", ""), value.get("answer", ""))


def _open(images: list[Path], video: Path | None, question: str, answer: str) -> Conversation:
    conversation = Conversation(question, answer, [_picture(path) for path in images])
    if video is not None:
        conversation.frames, conversation.metadata = _film(video)
    return conversation


def _picture(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except UnidentifiedImageError as error:
        raise _Unreadable(f"{path} (no picture that Pillow can read)") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _Unreadable(f"{path} ({error})") from error


def _film(path: Path) -> tuple[list[Image.Image], VideoMetadata]:
    """FRAMES frames of a video, evenly chosen."""

    def choose(metadata: VideoMetadata, **_: Any) -> np.ndarray:
        total = metadata.total_num_frames
        return np.linspace(0, total - 1, min(FRAMES, total)).astype(int)

    try:
        frames, metadata = load_video(str(path), backend="opencv", sample_indices_fn=choose)
    except (OSError, ValueError, ImportError) as error:
        raise _Unreadable(f"{path} ({error})") from error
    if len(frames) == 0:
        raise _Unreadable(f"{path} (no frame can be decoded)")
    return [Image.fromarray(frame) for frame in frames], metadata


def _evenly(openers: list[Opener], count: int) -> list[Opener]:
    if len(openers) <= count:
        return openers
    return [openers[index] for index in np.linspace(0, len(openers) - 1, count).astype(int)]


def _nothing(calibration: Path | None, unreadable: list[str]) -> str:
    if not unreadable:
        return f"{calibration} has no picture and no video; give a directory that has some."
    listed = "; ".join(unreadable[:3]) + ("; ..." if len(unreadable) > 3 else "")
    return f"{calibration} has nothing readable: {listed}. Give pictures that open."
