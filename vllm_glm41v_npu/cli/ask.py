# SPDX-License-Identifier: Apache-2.0
"""`glm41v ask`: one question about one or several picture files."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from PIL.Image import Image

HUB_MODEL = "zai-org/GLM-4.1V-9B-Thinking"


def ask(
    pictures: Annotated[list[Path], typer.Argument(help="Picture files, all of one request.")],
    question: Annotated[str, typer.Option(help="What to ask.")] = "Describe what you see.",
    model: Annotated[str, typer.Option(help="A folder or a hub name.")] = HUB_MODEL,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 1024,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
) -> None:
    """Answer a question about one or several pictures.

    Exits with 2 where an argument is wrong, and with 1 where vLLM is missing or cannot answer.
    """
    _check_installed()
    opened = [_open(path) for path in pictures]
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    if not which(os.environ.get("CXX") or "g++"):
        # vLLM on the CPU compiles its sampler even with enforce_eager.
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    from vllm import LLM, SamplingParams

    sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature)
    try:
        # Compiling the network would take longer than one answer.
        llm = LLM(model, limit_mm_per_prompt={"image": len(opened)}, enforce_eager=True)
        outputs = llm.chat(conversation(opened, question), sampling, use_tqdm=False)
    except (ValueError, OSError, RuntimeError) as error:
        _fail(f"{model} could not answer: {error}", code=1)
    typer.echo(outputs[0].outputs[0].text)


def conversation(pictures: list[Image], question: str) -> list[Any]:
    """One user message of pictures, then text, for `LLM.chat`."""
    parts: list[dict[str, Any]] = [{"type": "image_pil", "image_pil": p} for p in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def _check_installed() -> None:
    """End the command in a sentence where vLLM or its torch is missing; imports neither."""
    for package, name in (("vllm", "vLLM"), ("torch", "torch")):
        if find_spec(package) is None:
            _fail(
                f"{name} is not installed in this Python, and nothing can be answered without it: "
                "install vLLM for your device the way README.md describes.",
                code=1,
            )


def _open(path: Path) -> Image:
    """The decoded picture; ends the command in a sentence where there is none."""
    from PIL import Image, UnidentifiedImageError

    from vllm_glm41v_npu.processing.image import open_picture

    try:
        with Image.open(path) as picture:
            open_picture(picture, str(path))
            return picture
    except UnidentifiedImageError:
        _fail(f"{path} is not a picture that Pillow can read; expected a PNG, JPEG or the like.")
    except OSError as error:
        _fail(f"{path} cannot be opened ({error.strerror}); give the path of a picture file.")
    except Image.DecompressionBombError as error:
        _fail(f"{path} is too large: {error} Give a smaller picture.")
    except ValueError as error:
        _fail(str(error))


def _fail(message: str, code: int = 2) -> NoReturn:
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(code)
