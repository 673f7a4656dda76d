# SPDX-License-Identifier: Apache-2.0
"""One answer of the model while it arrives: thinking, content, and the boxes in it."""

from __future__ import annotations

from typing import Any

from vllm_glm41v_npu.serving.grounding import Box, find_boxes
from vllm_glm41v_npu.serving.thinking import ThinkingSplitter


class StreamedAnswer:
    """The part of an answer that has arrived.

    thinking: by the server's reasoning parser, or the text in `<think>` where it has none.
    content: without tags, as it is shown.
    cut: True where the tokens were used up.
    """

    def __init__(self) -> None:
        self.thinking = self.content = self._written = ""
        self.cut = False
        self._splitter = ThinkingSplitter()

    def add(self, choice: dict[str, Any]) -> None:
        """Take one choice of a stream; reasoning has either of the names that servers use."""
        delta = choice.get("delta") or {}
        self.thinking += delta.get("reasoning") or delta.get("reasoning_content") or ""
        written = delta.get("content") or ""
        self._written += written
        self._take(*self._splitter.feed(written))
        self.cut = self.cut or choice.get("finish_reason") == "length"

    def end(self) -> None:
        """Take the end of the stream."""
        self._take(*self._splitter.end())

    def boxes(self) -> list[Box]:
        """Return the boxes in the content; only marked ones where the server keeps the markers."""
        return find_boxes(self._written)

    def _take(self, thinking: str, content: str) -> None:
        self.thinking += thinking
        self.content += content
