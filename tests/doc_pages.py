# SPDX-License-Identifier: Apache-2.0
"""Parts of the READMEs and of the pages of docs/, and the shell commands that they show."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *sorted(ROOT.glob("README*.md")),
    *sorted(ROOT.glob("CONTRIBUTING*.md")),
    ROOT / "npu_emulator" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHELL = ("bash", "console", "sh", "shell")
OTHER = ("json", "python", "text")
INLINE = re.compile(r"`((?:\.venv/bin/)?(?:glm41v|make|pip|pytest|python|vllm) [^`]+)`")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
SEPARATORS = ("&&", "||", "|", ";", "\n")


@cache
def serve_parser() -> argparse.ArgumentParser:
    """Return vLLM's own parser of `vllm serve`; making it takes some seconds."""
    from vllm.entrypoints.openai.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser())


class Command(NamedTuple):
    """One simple command: its words without variables before it, and its standard input."""

    words: list[str]
    stdin: str = ""

    def __str__(self) -> str:
        return shlex.join(self.words)[:70]


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return (kind, text) of each fenced block of a page."""
    return BLOCK.findall(page.read_text())


def outline(page: Path) -> list[str]:
    """Return the first characters of each heading, table row, block and list item, in order."""
    text = BLOCK.sub("```", page.read_text())
    found = (re.match(r"#+ |\||```|- ", line) for line in text.splitlines())
    return [kind.group() for kind in found if kind]


def shell_blocks(page: Path) -> list[str]:
    """Return the blocks of shell commands; of a console, the lines after its prompt."""
    found = []
    for kind, text in blocks(page):
        if kind == "console":
            text = "".join(line[2:] + "\n" for line in text.splitlines() if line[:2] == "$ ")
        if kind in SHELL:
            found.append(text)
    return found


def inline_commands(page: Path) -> list[Command]:
    """Return the commands within a paragraph or a table."""
    found = INLINE.findall(BLOCK.sub("", page.read_text()))
    return [command for text in found for command in commands(text)]


def commands(text: str) -> Iterator[Command]:
    """Yield the simple commands of a piece of shell; an array or a function counts as one."""
    lines = iter(text.replace("\\\n", " ").splitlines())
    for line in lines:
        while not _is_whole(line):
            line = f"{line}\n{next(lines)}"
        stdin = ""
        if here := re.search(r"<<(\w+)$", line):
            line = line[: here.start()]
            stdin = "\n".join(iter(lambda lines=lines: next(lines), here[1]))
        if re.match(r"\w+\+?=\(|\w+\(\) *\{", line):
            yield Command([line.split("(")[0]])
            continue
        for words in _simple(line):
            yield Command(words, stdin)


def _is_whole(line: str) -> bool:
    """Return True where no quote and no array is open at the end of a line."""
    try:
        shlex.split(line, comments=True)
    except ValueError:
        return False
    return not re.match(r"\w+=\($", line) and not (re.match(r"\w+=\(\n", line) and line[-1] != ")")


def _simple(line: str) -> Iterator[list[str]]:
    """Yield the words between separators, without assignments before the command."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    for separator, group in groupby(lexer, lambda word: word in SEPARATORS):
        words = list(group)
        while len(words) > 1 and re.match(r"\w+=", words[0]):
            words = words[1:]
        if not separator:
            yield words
