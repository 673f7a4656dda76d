# SPDX-License-Identifier: Apache-2.0
"""Tasks of a run, from pictures, videos, folders of them, lines of JSONL and plain text."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from vllm_glm41v_npu.offline.sampling import SETTINGS, check_sampling, is_unicode
from vllm_glm41v_npu.offline.task import Task, TaskError
from vllm_glm41v_npu.processing.media_files import MEDIA_SUFFIXES, is_medium, open_file

__all__ = ["Task", "TaskError", "find_tasks"]

LINE_MIB = 512
"""The longest line of a JSONL; more would not fit beside a model."""

NAMED = 5
"""The most files that are named when several are left out."""

_KEYS = {"id", "image", "video", "text", "system", "messages", *SETTINGS}

logger = logging.getLogger(f"vllm.{__name__}")


def find_tasks(
    inputs: Sequence[Path],
    prompts: Sequence[str],
    system: str = "",
    say: Callable[[str], None] = logger.warning,
) -> list[Task]:
    """Return one task for each file, each file in a folder and each line of a JSONL.

    Without any of them it is one for each prompt. A wrong line is a task with an `error`.

    Args:
        inputs: Files and folders. Folders are gone through with those in them, in natural order
            (2.png before 10.png).
        prompts: The questions: the first file gets the first one and so on, and all later files get
            the last one, as in MindIE. Lines of a JSONL may have their own.
        system: The text of the system's turn, unless a line has its own.
        say: Called with a sentence about files of a folder that are left out.

    Raises:
        TaskError: Nothing is found, an input does not exist, cannot be read or is there twice, or a
            prompt is no Unicode.
    """
    if not all(map(is_unicode, (*prompts, system))):
        raise TaskError("--prompt or --system is not in the encoding of this terminal.")
    tasks: list[Task] = []
    for path in inputs:
        try:
            if path.suffix.lower() == ".jsonl" and not path.is_dir():
                tasks += _read_lines(path)
            else:
                tasks += [Task(str(file), files=(file,)) for file in _files(path, say)]
        except OSError as error:
            raise TaskError(f"{path} cannot be read ({error.strerror}).") from error
    if not inputs:
        tasks = [Task(f"prompt-{number}") for number, _ in enumerate(prompts)]
    asked = [*prompts, *[prompts[-1]] * len(tasks)] if prompts else []
    return [
        task if task.error or task.messages else _complete(task, text, system)
        for task, text in zip(_unique(tasks), asked or [""] * len(tasks), strict=False)
    ]


def _complete(task: Task, text: str, system: str) -> Task:
    complete = replace(task, text=task.text or text, system=task.system or system)
    if complete.text or complete.files:
        return complete
    error = f"{task.id} asks nothing: it has no text, and no --prompt was given."
    if not task.place:
        raise TaskError(error)
    return replace(task, error=error)


def _unique(tasks: Sequence[Task]) -> Iterator[Task]:
    """Yield the tasks, each with its own id; a line that repeats an id is called by its place."""
    seen: set[str] = set()
    for task in tasks:
        if task.id in seen and task.place and task.place not in seen:
            error = f"Its id, {task.id!r}, is that of an earlier request. Give each line another."
            task = replace(task, id=task.place, error=task.error or error)
        if task.id in seen:
            raise TaskError(
                f"{task.id} is there twice, and answers are found by it. Give each file once, and "
                "each line of a JSONL another id."
            )
        seen.add(task.id)
        yield task


def _files(path: Path, say: Callable[[str], None]) -> list[Path]:
    """Return the file, or the pictures and videos of the folder, by their names."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        found = "is no file and no folder" if os.path.lexists(path) else "does not exist"
        raise TaskError(f"{path} {found}. Give pictures, videos, folders or JSONL files.")
    media, left_out = _walk(path)
    names = " ".join(MEDIA_SUFFIXES)
    if not media:
        raise TaskError(f"{path} holds no picture and no video, by their names ({names}).")
    if left_out:
        more = f" and {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
        say(
            f"Left out of {path}: {', '.join(left_out[:NAMED])}{more}. Taken are files that are "
            f"pictures or videos by their names ({names}); a file that is given by itself is "
            "opened whatever its name."
        )
    return media


def _walk(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the media below a folder, and the paths from it of all that is left out.

    Links to folders are not followed, as they may lead in a circle.
    """
    media: list[Path] = []
    left_out: list[Path] = []
    why: dict[Path, str] = {}
    folders = [folder]
    while folders:
        here = folders.pop()
        try:
            entries = [here / entry.name for entry in os.scandir(here)]
        except OSError as error:
            if here == folder:
                raise
            left_out.append(here)
            why[here] = f" ({error.strerror})"
            continue
        for path in entries:
            if path.is_dir() and not path.is_symlink():
                folders.append(path)
            elif path.is_dir():
                left_out.append(path)
                why[path] = " (a link to a folder)"
            else:
                (media if is_medium(path) else left_out).append(path)
    for found in (media, left_out):
        found.sort(key=lambda path: _natural(path.relative_to(folder)))
    return media, [f"{path.relative_to(folder)}{why.get(path, '')}" for path in left_out]


def _natural(path: Path) -> list[list[tuple[int, str]]]:
    """Return a key for sorting in which numbers within names count as numbers."""
    return [
        [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
        for name in path.parts
    ]


def _read_lines(path: Path) -> Iterator[Task]:
    """Yield a task for each line that is not empty; lines end with a line feed and nothing else."""
    number = 0
    with open_file(path) as file:
        while line := file.readline((LINE_MIB << 20) + 1):
            number += 1
            name = f"{path.name}:{number}"
            if len(line) > LINE_MIB << 20:
                _skip_line(file)
                error = f"it is longer than {LINE_MIB} MiB. Give media as files."
                yield Task(name, error=f"{path}, line {number}: {error}", place=name)
            elif line.strip():
                yield _parsed(line, path, number)


def _skip_line(file: BinaryIO) -> None:
    while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
        pass


def _parsed(line: bytes, path: Path, number: int) -> Task:
    name = f"{path.name}:{number}"
    encoding = "utf-8-sig" if number == 1 else "utf-8"
    try:
        task = _task(json.loads(line.decode(encoding)), name, path.parent)
    except UnicodeDecodeError as error:
        task = Task(
            name, place=name, error=f"it is not UTF-8 ({error.reason} at byte {error.start})."
        )
    except (ValueError, RecursionError) as error:
        task = Task(name, place=name, error=f"it is not JSON ({error}).")
    return replace(task, error=f"{path}, line {number}: {task.error}") if task.error else task


def _task(line: Any, name: str, folder: Path) -> Task:
    """Return the task of a line, called `name` if it has no id; a wrong one has an `error`."""
    known = name
    try:
        if not isinstance(line, dict):
            raise ValueError("expected a JSON object.")
        known = _id(line.get("id"), name)
        return _checked(line, known, name, folder)
    except ValueError as error:
        return Task(known, error=str(error), place=name)


def _id(value: Any, name: str) -> str:
    if value is None:
        return name
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"id is {value!r:.60}; expected a text or a number.")
    return str(value)


def _checked(line: dict[str, Any], known: str, name: str, folder: Path) -> Task:
    """Return the task of a checked line; raise ValueError with a sentence about a wrong one."""
    unknown = sorted(line.keys() - _KEYS)
    if unknown:
        raise ValueError(
            f"unknown keys {', '.join(unknown)[:200]}; expected {', '.join(sorted(_KEYS))}."
        )
    given = {key: value for key, value in line.items() if value is not None}
    if "messages" in given and given.keys() & {"image", "video", "text", "system"}:
        raise ValueError("messages is the whole request; leave out image, video, text and system.")
    return Task(
        known,
        _text("text", given),
        tuple(folder / file for key in ("image", "video") for file in _listed(given.get(key))),
        _text("system", given),
        _messages(given["messages"]) if "messages" in given else (),
        check_sampling({key: given[key] for key in SETTINGS if key in given}),
        place=name,
    )


def _text(key: str, given: dict[str, Any]) -> str:
    text = given.get(key, "")
    if not isinstance(text, str):
        raise ValueError(f"{key} is {text!r:.60}; expected a text.")
    if not is_unicode(text):
        raise ValueError(f"{key} holds half a character (a lone surrogate); expected Unicode.")
    return text


def _listed(value: Any) -> list[str]:
    values = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) and item for item in values):
        raise ValueError(f"image and video are paths or lists of them, not {value!r:.60}.")
    return values


def _messages(value: Any) -> tuple[dict[str, Any], ...]:
    """Return a conversation of the right form; vLLM checks the content of its parts."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"messages is {value!r:.60}; expected a list of messages, not empty.")
    for number, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(
                f"messages[{number}] is {message!r:.60}; expected an object with a role, which is "
                "a text such as user, and with content."
            )
        if not isinstance(message.get("content"), (str, list, type(None))):
            raise ValueError(
                f"the content of messages[{number}] is {message['content']!r:.60}; expected a text "
                "or a list of parts."
            )
    return tuple(value)
