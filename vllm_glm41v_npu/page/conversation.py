# SPDX-License-Identifier: Apache-2.0
"""The conversation on the page as messages of a request.

Messages of the page are those of gradio's Chatbot: `role`, `content` (a list of parts: `text`,
`file`, or a component such as a drawn picture) and `metadata`. The assistant's messages with
metadata are not the model's answer: its thinking has a title, our notes have an id.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from vllm_glm41v_npu.processing.media_files import data_url
from vllm_glm41v_npu.processing.picture_formats import formats

NOTE, ERROR = "note", "error"
"""Metadata ids of the page's notes about an answer, and of errors in place of one."""

MAX_FILES, MAX_BYTES = 16, 512 << 20
"""The most pictures and clips of one request, earlier questions' included, and their bytes."""

Message = dict[str, Any]


class Question(NamedTuple):
    """A question's files, by their paths, and its text."""

    files: Sequence[str]
    text: str


class MediaError(Exception):
    """A file that is not sent, or too many; a sentence for the person at the page."""


def request(history: Sequence[Message], files: Sequence[str], text: str, system: str) -> list:
    """Return the messages to send: the system's, those of the page, and the new one.

    Raises MediaError.
    """
    turns: list[Question | Message] = []
    for message in history:
        metadata = message.get("metadata") or {}
        if metadata.get("id") == ERROR:
            _drop_turn(turns)
        elif message["role"] == "user":
            turns.append(Question(_files(message), _text(message)))
        elif not metadata and (said := _text(message)):
            turns.append({"role": "assistant", "content": said})
    turns.append(Question(files, text))
    _check_amount([path for turn in turns if isinstance(turn, Question) for path in turn.files])
    messages: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
    return messages + [_user(*turn) if isinstance(turn, Question) else turn for turn in turns]


def last_media(history: Sequence[Message], files: Sequence[str]) -> list[str]:
    """Return the paths of the latest message that has any; boxes of an answer are about them."""
    earlier = (_files(message) for message in reversed(history) if message["role"] == "user")
    return next((paths for paths in (list(files), *earlier) if paths), [])


def open_picture(path: str) -> Image.Image | None:
    """Return the picture in a file; None where it is a video."""
    return Image.open(path, formats=formats()) if _kind(path).startswith("image/") else None


def _check_amount(files: Sequence[str]) -> None:
    """Raise MediaError where there are more files than a request may have; none is read before."""
    try:
        size = sum(Path(path).stat().st_size for path in files)
    except OSError as error:
        name = Path(error.filename).name
        raise MediaError(
            f"{name} is not here any more: uploads are removed after a day. Begin a new "
            "conversation, and upload it again."
        ) from None
    if len(files) > MAX_FILES or size > MAX_BYTES:
        raise MediaError(
            f"This conversation has {len(files)} files of {size / (1 << 20):,.1f} MiB together; "
            f"the page sends {MAX_FILES} files and {MAX_BYTES >> 20} MiB at most. Begin a new one, "
            "with fewer or smaller files."
        )


def _user(files: Iterable[str], text: str) -> Message:
    """Return a user's message; media come before the question, as in the model's training."""
    words = [{"type": "text", "text": text}] if text else []
    return {"role": "user", "content": [*map(_part, files), *words]}


def _part(path: str) -> dict[str, Any]:
    kind = _kind(path)
    name = f"{kind.partition('/')[0]}_url"
    url = data_url(Path(path).read_bytes(), kind)
    return {"type": name, name: {"url": url}}


def _kind(path: str) -> str:
    kind = mimetypes.guess_type(path)[0] or ""
    if not kind.startswith(("image/", "video/")):
        raise MediaError(
            f"{Path(path).name} is neither a picture nor a video by its name; give a PNG, a JPEG, "
            "an MP4 or the like."
        )
    return kind


def _drop_turn(turns: list[Question | Message]) -> None:
    """Forget the last question, which was not answered to its end."""
    while turns and not isinstance(turns.pop(), Question):
        pass


def _files(message: Message) -> list[str]:
    return [part["file"]["path"] for part in message["content"] if part["type"] == "file"]


def _text(message: Message) -> str:
    return "\n".join(part["text"] for part in message["content"] if part["type"] == "text")
