# SPDX-License-Identifier: Apache-2.0
"""A command's output: text of others made safe for a terminal, and the sentence that ends it."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from typing import NoReturn

import typer

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # all but tab and line feed: colours, titles, carriage returns
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # line ends, and directions of writing
    "\ud800-\udfff]"  # of names that are not UTF-8
)


def printable(text: str) -> str:
    """Return the text with control characters as escapes, such as \\x1b; it may have lines."""
    return _CONTROLS.sub(lambda found: _escape(found[0]), text)


def one_line(text: str) -> str:
    """Return the text as `printable` does, on one line."""
    return printable(text).replace("\n", "\\n")


def echo(text: str, err: bool = False) -> None:
    """Print a printable text; letters that the terminal's encoding lacks become escapes."""
    encoding = (sys.stderr if err else sys.stdout).encoding or "utf-8"
    text = printable(text).encode(encoding, "backslashreplace").decode(encoding)
    typer.echo(text, err=err)


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape", "backslashreplace").decode("ascii")


def fail(message: str, code: int = 2) -> NoReturn:
    """End the command with a sentence on standard error; exit code 2 is for wrong arguments."""
    echo(f"Error: {message}", err=True)
    sys.exit(code)


def check_installed() -> None:
    """End the command in a sentence where vLLM or its torch is missing; imports neither."""
    for package, name in (("vllm", "vLLM"), ("torch", "torch")):
        if find_spec(package) is None:
            fail(
                f"{name} is not installed in this Python, and nothing can be answered without it: "
                "install vLLM for your device the way README.md describes.",
                code=1,
            )
