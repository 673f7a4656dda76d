# SPDX-License-Identifier: Apache-2.0
"""Tool calls in the JSON that the model writes under `"tool_choice": "required"`.

vLLM's grammar demands `[{"name": "...", "parameters": {...}}, ...]`, with keys in this order.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

_HEAD = re.compile(
    r"""\s*(?:\[|\}\s*,)\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"parameters"\s*:\s*(?=\{)"""
)


class Piece(NamedTuple):
    """A piece of one call's arguments."""

    call: int
    """The number of the call, from 0."""
    name: str | None
    """The tool's name with the first piece of a call, None with the others."""
    arguments: str


class CallReader:
    """Reads calls from an answer that comes in pieces, each character once.

    Arguments are as the model wrote them; those of a call that is cut off end there.
    """

    def __init__(self) -> None:
        self.text = ""
        """The text that was read so far."""
        self._held = ""
        self._index = -1
        self._depth = 0
        self._in_string = self._escaped = False

    @property
    def found(self) -> bool:
        """True once a call has begun."""
        return self._index >= 0

    def feed(self, text: str) -> list[Piece]:
        """Return the pieces that `text` settles."""
        self.text += text
        self._held += text
        pieces = []
        while self._held:
            if self._depth:
                pieces.append(Piece(self._index, None, self._arguments()))
            elif head := _HEAD.match(self._held):
                self._held = self._held[head.end() :]
                self._index += 1
                pieces.append(Piece(self._index, json.loads(head[1]), self._arguments()))
            else:
                break
        return pieces

    def _arguments(self) -> str:
        """Take the held text up to the end of this call's arguments, and return it."""
        length = 0
        for length, character in enumerate(self._held, 1):  # noqa: B007
            self._step(character)
            if not self._depth:
                break
        taken, self._held = self._held[:length], self._held[length:]
        return taken

    def _step(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif self._in_string:
            self._escaped = character == "\\"
            self._in_string = character != '"'
        elif character == '"':
            self._in_string = True
        else:
            self._depth += (character in "{[") - (character in "}]")


class Call(NamedTuple):
    """One call of a tool."""

    name: str
    arguments: str


def read_calls(text: str) -> list[Call]:
    """Return the calls in a whole answer; an empty list where it is something else."""
    calls: list[Call] = []
    for piece in CallReader().feed(text):
        calls.append(Call(piece.name or "", piece.arguments))
    return calls
