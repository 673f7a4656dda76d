# SPDX-License-Identifier: Apache-2.0
"""Thinking and content of an answer of GLM-4.1V, taken apart while it arrives in pieces.

The model writes `<think>...</think><answer>...</answer>`, and around a final value or a box
`<|begin_of_box|>...<|end_of_box|>`. The first four tags are tokens of its vocabulary; the markers
of a box are not in every one, and then come in several tokens.
"""

from __future__ import annotations

import re

THINK, END_THINK = "<think>", "</think>"
ANSWER, END_ANSWER = "<answer>", "</answer>"
BOX, END_BOX = "<|begin_of_box|>", "<|end_of_box|>"

REMOVED = {
    "none": (ANSWER, END_ANSWER, BOX, END_BOX),
    "boxes": (ANSWER, END_ANSWER),
    "all": (),
}
"""Value of `keep_tags` to the tags that are removed from the content."""


class ThinkingSplitter:
    """Splits one answer; whatever the pieces, the joined results are the same.

    An answer that does not begin with `<think>` is content from its first character.

    Args:
        thinking: The prompt opened the thinking, so the answer begins within it.
        closed: The prompt closed the thinking, so all is content, without white space before it.
        keep: A key of REMOVED; its tags are removed from the content, with the white space between
            them. With "all", every answer is content, as it was written.
    """

    def __init__(self, *, thinking: bool = False, closed: bool = False, keep: str = "none") -> None:
        self._tags = REMOVED[keep]
        self._pattern = re.compile("|".join(map(re.escape, self._tags)))
        self._step = self._think if thinking else self._start
        if keep == "all" or closed:
            self._step = self._answer
        self._trims = closed and keep != "all"
        self._held = ""

    def feed(self, piece: str) -> tuple[str, str]:
        """Return the (thinking, content) that `piece` settles; a possible start of a tag waits."""
        self._held += piece
        thinking = content = ""
        step = None
        while step is not self._step:  # until a step leaves the answer where it is
            step = self._step
            more_thinking, more_content = step()
            thinking += more_thinking
            content += more_content
        return thinking, content

    def end(self) -> tuple[str, str]:
        """Return the (thinking, content) that waited for the rest of a tag, as no more comes."""
        held, self._held = self._held, ""
        return (held, "") if self._step == self._think else ("", held)

    def _start(self) -> tuple[str, str]:
        text = self._held.lstrip()
        if text.startswith(THINK):
            self._held = text[len(THINK) :]
            self._step = self._think
        elif not THINK.startswith(text):
            self._step = self._answer
        return "", ""

    def _think(self) -> tuple[str, str]:
        thinking, tag, rest = self._held.partition(END_THINK)
        if not tag:
            return self._take((END_THINK,)), ""
        self._held = rest
        self._step = self._answer
        self._trims = True
        return thinking, ""

    def _answer(self) -> tuple[str, str]:
        content = self._pattern.sub("", self._take(self._tags))
        if self._trims:
            content = content.lstrip()
            self._trims = not content
        return "", content

    def _take(self, tags: tuple[str, ...]) -> str:
        """Return all that is held, but for an end that may be the start of one of `tags`."""
        begin = self._held.rfind("<")
        tail = self._held[begin:] if begin >= 0 else ""
        waits = tail and any(tag != tail and tag.startswith(tail) for tag in tags)
        taken = self._held[:begin] if waits else self._held
        self._held = self._held[len(taken) :]
        return taken


def split(
    text: str, *, thinking: bool = False, closed: bool = False, keep: str = "none"
) -> tuple[str, str]:
    """Return (thinking, content) of a whole answer; see `ThinkingSplitter`."""
    splitter = ThinkingSplitter(thinking=thinking, closed=closed, keep=keep)
    first, last = splitter.feed(text), splitter.end()
    return first[0] + last[0], first[1] + last[1]
