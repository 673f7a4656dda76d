# SPDX-License-Identifier: Apache-2.0
"""What is to be answered: pictures, videos, folders of them, lines of JSONL, plain text."""

from __future__ import annotations

import json
import mimetypes
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_glm41v_npu.media_files import PICTURES, VIDEOS, data_url, is_medium, is_video

SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "seed", "max_tokens", "stop")
"""Of vLLM's SamplingParams, what a line of a JSONL may set for itself."""

_KEYS = {"id", "image", "video", "text", "system", "messages", *SAMPLING}


class TaskError(ValueError):
    """A request cannot be made of what was given; the message says why, and what to do."""


@dataclass(frozen=True)
class Task:
    """One request, of which nothing is read yet.

    id: what its answer is found by, one of a kind.
    text: the question.
    files: pictures and videos, before the text.
    system: of the system's turn, or "".
    messages: the whole conversation in OpenAI's form, in place of the three.
    sampling: some of SAMPLING.
    """

    id: str
    text: str = ""
    files: tuple[Path, ...] = ()
    system: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def conversation(self) -> list[Any]:
        """For vLLM's chat; the files are read now.

        Raises:
            TaskError: One is no picture and no video by its name, or cannot be read.
        """
        if self.messages:
            return list(self.messages)
        parts = [_part(path) for path in self.files]
        if self.text:
            parts.append({"type": "text", "text": self.text})
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": parts}]


def find_tasks(inputs: Sequence[Path], prompts: Sequence[str], system: str = "") -> list[Task]:
    """One task for each file, each file in a folder, each line of a JSONL; without any of them, one
    for each prompt.

    Args:
        inputs: Files and folders. Folders are gone through with those in them, in natural order
            (2.png before 10.png), and what is no picture or video there is left out.
        prompts: The questions: the first file gets the first one and so on, and the last one stands
            for all that follow, as in MindIE. Lines of a JSONL may bring their own.
        system: Of the system's turn, unless a line has its own.

    Raises:
        TaskError: Nothing is found, a path does not exist, or a line of a JSONL is wrong.
    """
    tasks: list[Task] = []
    for path in inputs:
        if path.suffix == ".jsonl":
            tasks += _read_lines(path)
        else:
            tasks += [Task(str(file), files=(file,)) for file in _files(path)]
    if not inputs:
        tasks = [Task(f"prompt-{number}") for number, _ in enumerate(prompts)]
    _check_ids(tasks)
    asked = [*prompts, *[prompts[-1]] * len(tasks)] if prompts else []
    return [
        task if task.messages else _complete(task, text, system)
        for task, text in zip(tasks, asked or [""] * len(tasks), strict=False)
    ]


def _complete(task: Task, text: str, system: str) -> Task:
    complete = Task(
        task.id, task.text or text, task.files, task.system or system, (), task.sampling
    )
    if not complete.text and not complete.files:
        raise TaskError(f"{task.id} asks nothing: it has no text, and no --prompt was given.")
    return complete


def _check_ids(tasks: Sequence[Task]) -> None:
    seen: set[str] = set()
    for task in tasks:
        if task.id in seen:
            raise TaskError(
                f"{task.id} is there twice, and answers are found by it. Give each file once, and "
                "each line of a JSONL another id."
            )
        seen.add(task.id)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise TaskError(f"{path} does not exist. Give pictures, videos, folders or JSONL files.")
    found = [file for file in path.rglob("*") if is_medium(file) and not file.is_dir()]
    if not found:
        raise TaskError(
            f"{path} holds no picture and no video, by their names ({' '.join(PICTURES + VIDEOS)})."
        )
    return sorted(found, key=lambda file: _natural(file.relative_to(path)))


def _natural(path: Path) -> list[list[tuple[int, str]]]:
    """A key for sorting by which numbers within names count as numbers."""
    return [
        [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
        for name in path.parts
    ]


def _read_lines(path: Path) -> Iterator[Task]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} cannot be read ({error}).") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield _task(json.loads(line), f"{path.name}:{number}", path.parent)
            except (ValueError, TypeError) as error:
                raise TaskError(f"{path}, line {number}: {error}") from error


def _task(line: Any, name: str, folder: Path) -> Task:
    if not isinstance(line, dict):
        raise ValueError("expected a JSON object.")
    unknown = sorted(line.keys() - _KEYS)
    if unknown:
        raise ValueError(f"unknown keys {', '.join(unknown)}; expected {', '.join(sorted(_KEYS))}.")
    if "messages" in line and line.keys() & {"image", "video", "text", "system"}:
        raise ValueError("messages is the whole request; leave out image, video, text and system.")
    files = [*_listed(line.get("image")), *_listed(line.get("video"))]
    return Task(
        str(line.get("id", name)),
        line.get("text", ""),
        tuple(folder / file for file in files),
        line.get("system", ""),
        tuple(line.get("messages", ())),
        {key: line[key] for key in SAMPLING if key in line},
    )


def _listed(value: Any) -> list[str]:
    values = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in values):
        raise ValueError(f"image and video are paths or lists of them, not {value!r}.")
    return values


def _part(path: Path) -> dict[str, Any]:
    """A file as vLLM's chat takes it, whole: no folder has to be shared with the engine."""
    if not is_medium(path):
        raise TaskError(f"{path} is no picture and no video by its name.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path} cannot be read ({error.strerror}).") from error
    kind = "video" if is_video(path) else "image"
    media_type = mimetypes.guess_type(path.name)[0] or f"{kind}/{path.suffix[1:].lower()}"
    return {"type": f"{kind}_url", f"{kind}_url": {"url": data_url(data, media_type)}}
