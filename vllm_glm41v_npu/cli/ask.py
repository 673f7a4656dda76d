# SPDX-License-Identifier: Apache-2.0
"""`glm41v ask`: one question about picture and video files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from vllm_glm41v_npu.cli.start import fitted
from vllm_glm41v_npu.cli.terminal import check_installed, echo, fail
from vllm_glm41v_npu.family import PUBLISHED_NAME
from vllm_glm41v_npu.processing.media_files import data_url, kind_of, read_file

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST = 4 << 30
"""The most bytes of a file that are read; the engine has smaller limits itself."""


def ask(
    files: Annotated[list[Path], typer.Argument(help="Pictures and videos, all of one request.")],
    question: Annotated[str, typer.Option(help="What to ask.")] = "Describe what you see.",
    model: Annotated[str, typer.Option(help="A folder or a hub name.")] = PUBLISHED_NAME,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 1024,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
) -> None:
    """Answer a question about pictures and videos.

    Exits with 2 where an argument is wrong, and with 1 where vLLM is missing or cannot answer.
    """
    check_installed()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    media: list[Image | Video] = [_open(path) for path in files]
    if not which(os.environ.get("CXX") or "g++"):
        # vLLM on the CPU compiles its sampler even with enforce_eager.
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    from vllm import LLM, SamplingParams

    sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature)
    try:
        # Compiling the network would take longer than one answer.
        counts = _counts(media)
        llm = LLM(**fitted({"model": model}), limit_mm_per_prompt=counts, enforce_eager=True)
        outputs = llm.chat(conversation(media, question), sampling, use_tqdm=False)
    except (ValueError, OSError, RuntimeError) as error:
        fail(f"{model} could not answer: {error}", code=1)
    echo(outputs[0].outputs[0].text)


class Video(NamedTuple):
    """The bytes of a video file."""

    data: bytes
    media_type: str = "video/mp4"


def conversation(media: Sequence[Image | Video], question: str) -> list[Any]:
    """Return one user message of pictures and videos, then text, for `LLM.chat`."""
    parts = [*map(_part, media), {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


def _part(medium: Image | Video) -> dict[str, Any]:
    if not isinstance(medium, Video):
        return {"type": "image_pil", "image_pil": medium}
    url = data_url(medium.data, medium.media_type)
    return {"type": "video_url", "video_url": {"url": url}}


def _counts(media: Sequence[Image | Video]) -> dict[str, int]:
    videos = sum(isinstance(medium, Video) for medium in media)
    return {"image": len(media) - videos, "video": videos}


def _open(path: Path) -> Image | Video:
    """Return a decoded picture or a video file, by content; end the command where it is neither."""
    try:
        data = read_file(path, LARGEST)
    except OSError as error:
        fail(f"{path} cannot be opened ({error.strerror}); give a picture or video file.")
    return Video(data) if kind_of(path) == "video" else _picture(data, path)


def _picture(data: bytes, path: Path) -> Image:
    from vllm_glm41v_npu.processing.picture_file import plan_picture

    try:
        return plan_picture(data, str(path)).decode()
    except ValueError as error:
        fail(str(error))
