# SPDX-License-Identifier: Apache-2.0
"""Faults of a checkpoint's files, found without a weight being read; torch-free.

The same checks refuse it when vLLM starts (`check_files`) and are reported by `glm41v doctor`.
Faults of config.json itself are found by `config.normalise`, for both.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from vllm_glm41v_npu.checkpoint import other_tools
from vllm_glm41v_npu.checkpoint.description import Description, DescriptionError, unsupported
from vllm_glm41v_npu.checkpoint.folder import Checkpoint, local_folder
from vllm_glm41v_npu.checkpoint.problem import Problem
from vllm_glm41v_npu.checkpoint.processor_files import PICTURES, VIDEOS, unknown_video_class
from vllm_glm41v_npu.checkpoint.tokens import MARKS, ids_of_tokenizer, mark_ids

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
NEEDED = (*TOKENIZER_FILES, PICTURES.files[0])

WRAPPERS = {
    "base_model.model.": "a LoRA adapter that was saved with its model: merge it into the model "
    "and save that (`merge_and_unload` in peft)",
    "module.": "a trainer's wrapper around the model: save the model inside it",
}
"""Beginnings of tensor names that are another tool's, and what to do."""

logger = logging.getLogger(f"vllm.{__name__}")


class BadCheckpoint(ValueError):
    """A checkpoint's files cannot be used; the message says why, and what to do."""


def problems(
    checkpoint: Checkpoint, stack: str | None, tokenizer: Checkpoint | None = None
) -> Iterator[Problem]:
    """Yield everything that is wrong with the files, the gravest first.

    Args:
        checkpoint: Its folder.
        stack: The backend's (`Backend.stack`), None where that is not known.
        tokenizer: The folder of its tokenizer, where that is another.
    """
    tokenizer = tokenizer or checkpoint
    yield from quantization(checkpoint, stack)
    yield from tensor_names(checkpoint)
    yield from companions(checkpoint, tokenizer)
    yield from token_ids(checkpoint, tokenizer)
    yield from videos(checkpoint, tokenizer)
    yield from chat_template(checkpoint, tokenizer)


def quantization(checkpoint: Checkpoint, stack: str | None) -> Iterator[Problem]:
    """Yield types and tools that nothing here computes."""
    try:
        description = Description.read(checkpoint.folder)
    except DescriptionError as error:
        yield Problem(other_tools.NAME, str(error).rstrip("."), "Copy the checkpoint again.")
        return
    if description is None:
        yield from other_tools.problems(checkpoint, stack)
        return
    if problem := unsupported(description):
        yield problem


def tensor_names(checkpoint: Checkpoint) -> Iterator[Problem]:
    """Yield tensor names that are another tool's."""
    for beginning, what in WRAPPERS.items():
        named = next((name for name in checkpoint.tensors if name.startswith(beginning)), None)
        if named is not None:
            yield Problem("weights", f"a tensor is called {named!r}", f"This is {what}.")
            return


def companions(checkpoint: Checkpoint, tokenizer: Checkpoint) -> Iterator[Problem]:
    """Yield files beside the weights that a download or a tool left out."""
    missing = [name for name in TOKENIZER_FILES if not tokenizer.has(name)]
    if not PICTURES.read(checkpoint.read_json)[1]:
        missing.append(PICTURES.files[0])
    if missing:
        advice = "Copy from the original model what msModelSlim or the download left out."
        yield Problem("tokenizer", f"missing: {', '.join(missing)}", advice)


def token_ids(checkpoint: Checkpoint, tokenizer: Checkpoint) -> Iterator[Problem]:
    """Yield marks of pictures and videos whose ids in config.json are not the tokenizer's."""
    known, config = ids_of_tokenizer(tokenizer), checkpoint.config
    if known is None or config is None:
        return
    text = checkpoint.text_config
    wrong = []
    for key, number in mark_ids(config, text).items():
        mark = MARKS[key].text
        if known.get(mark) != number:
            has = f"the id {known[mark]}" if mark in known else "no id"
            written = f"{number}" if key in config or key in text else f"{number} (left out)"
            wrong.append(f"{key} {written} where the tokenizer has {has} for {mark}")
    if wrong:
        yield Problem(
            "token ids",
            f"config.json has {'; '.join(wrong)}",
            "Write the tokenizer's ids into config.json, or use the tokenizer of this checkpoint.",
        )


def videos(checkpoint: Checkpoint, tokenizer: Checkpoint) -> Iterator[Problem]:
    """Yield a video processor of another class, with which only pictures and text are served."""
    problem = unknown_video_class(VIDEOS.read(checkpoint.read_json)[1])
    if problem is not None:
        yield problem


def chat_template(checkpoint: Checkpoint, tokenizer: Checkpoint) -> Iterator[Problem]:
    """Yield that there is no template: vLLM starts without one, and refuses every chat."""
    if template_file(checkpoint) is None and template_file(tokenizer) is None:
        advice = (
            "Chat requests would be refused: copy chat_template.jinja from the original model, or "
            "start with --chat-template FILE."
        )
        yield Problem("chat template", "none", advice, fatal=False)


def template_file(checkpoint: Checkpoint) -> str | None:
    """Return the file that has the chat template; None where there is none."""
    for name in ("chat_template.jinja", "chat_template.json"):
        if checkpoint.has(name):
            return name
    name = "tokenizer_config.json"
    return name if (checkpoint.read_json(name) or {}).get("chat_template") else None


def check_files(model_config: Any, stack: str) -> None:
    """Refuse a checkpoint that would not load, or compute something else, before it is loaded.

    Args:
        model_config: vLLM's, of a folder or a hub model.
        stack: The backend's.

    Raises:
        BadCheckpoint: The message names the folder, what was found, and what to do.
    """
    if model_config.skip_tokenizer_init:  # nothing is asked of it but ids, and no pictures
        return
    wanted = ["*.json", "*.jinja"]
    folder = local_folder(model_config.model, wanted, model_config.revision)
    tokenizer = folder
    if model_config.tokenizer not in (None, model_config.model):
        tokenizer = local_folder(model_config.tokenizer, wanted, model_config.tokenizer_revision)
    for problem in problems(Checkpoint(folder), stack, Checkpoint(tokenizer)):
        if problem.fatal:
            raise BadCheckpoint(f"{folder}: {problem}")
        logger.warning("%s: %s: %s", folder, problem.name, problem)
