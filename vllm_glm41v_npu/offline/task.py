# SPDX-License-Identifier: Apache-2.0
"""One request of a run, and its messages for vLLM's chat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_glm41v_npu.processing.limits import max_file_bytes
from vllm_glm41v_npu.processing.media_files import data_url, kind_of, read_file

MEDIA_TYPES = {"image": "image/png", "video": "video/mp4"}
"""Labels of data URLs. Only the kind counts: decoders look at the content."""


class TaskError(ValueError):
    """A request cannot be made of what was given; the message says why, and what to do."""


@dataclass(frozen=True)
class Task:
    """One request; its files are not read yet.

    id: its answer is found by it; no two tasks share one.
    text: the question.
    files: pictures and videos, before the text.
    system: the text of the system's turn, or "".
    messages: the whole conversation in OpenAI's form, in place of the three.
    sampling: some of `sampling.SETTINGS`.
    error: a sentence about a wrong request, which is not asked then.
    place: file and number of a line, "" where it comes from no line.
    """

    id: str
    text: str = ""
    files: tuple[Path, ...] = ()
    system: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    place: str = field(default="", compare=False)

    def conversation(self) -> list[Any]:
        """Return the messages for vLLM's chat; the files are read now.

        Raises:
            TaskError: One is no picture and no video, or cannot be read.
        """
        if self.messages:
            return list(self.messages)
        parts = [_part(path) for path in self.files]
        if self.text:
            parts.append({"type": "text", "text": self.text})
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": parts}]


def _part(path: Path) -> dict[str, Any]:
    """Return a whole file as a part of vLLM's chat: no folder is shared with the engine."""
    kind = kind_of(path)
    try:
        data = read_file(path, max_file_bytes("video" if kind == "video" else "image"))
    except OSError as error:
        raise TaskError(f"{path} cannot be read ({error.strerror}).") from error
    if kind is None:
        raise TaskError(
            f"{path} is no picture and no video, neither by its content nor by its name. Give a "
            "PNG, a JPEG, an MP4 or the like."
        )
    return {"type": f"{kind}_url", f"{kind}_url": {"url": data_url(data, MEDIA_TYPES[kind])}}
