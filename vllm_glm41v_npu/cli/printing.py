# SPDX-License-Identifier: Apache-2.0
"""Text of others on a terminal: names of files, answers and errors that quote them."""

from __future__ import annotations

import re
import sys

import typer

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # all but tab and line feed: colours, titles, carriage returns
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # line ends, and directions of writing
    "\ud800-\udfff]"  # of names that are not UTF-8
)


def printable(text: str) -> str:
    """The text with what would steer a terminal as escapes, such as \\x1b; it may have lines."""
    return _CONTROLS.sub(lambda found: _escape(found[0]), text)


def one_line(text: str) -> str:
    """The text as `printable` gives it, and on one line."""
    return printable(text).replace("\n", "\\n")


def echo(text: str, err: bool = False) -> None:
    """Print a printable text; letters that the terminal's encoding lacks become escapes."""
    encoding = (sys.stderr if err else sys.stdout).encoding or "utf-8"
    text = printable(text).encode(encoding, "backslashreplace").decode(encoding)
    typer.echo(text, err=err)


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape", "backslashreplace").decode("ascii")
