# SPDX-License-Identifier: Apache-2.0
"""Answers as lines of JSON, written by a run and read by the next one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_RAW = re.compile("[\x7f-\x9f\u2028\u2029]")
"""Characters that JSON does not escape, and that terminals and readers of lines misread."""

_START = re.compile(r'\{"id": "(?:[^"\\]|\\.)*\\?', re.DOTALL)
_KEYS = ('", "answer": ', '", "error": ')


def encode(answer: Mapping[str, Any]) -> bytes:
    """Return one line of UTF-8; halves of characters, as in names not in UTF-8, are escaped."""
    line = json.dumps(answer, ensure_ascii=False)
    line = _RAW.sub(lambda found: f"\\u{ord(found[0]):04x}", line)
    return f"{line}\n".encode("utf-8", "backslashreplace")


def read_answers(data: bytes, path: Path) -> tuple[list[dict[str, Any]], bool]:
    """Return the answers in a file, without errors, and True where it holds nothing else.

    Raises:
        ValueError: A line is no answer of an earlier run.
    """
    *lines, rest = data.split(b"\n")
    whole = not rest
    kept = []
    for number, line in enumerate([*lines, rest], 1):
        if not line.strip():
            continue
        answer = _decode(line.removeprefix(b"\xef\xbb\xbf"))
        if answer is None:
            if line is rest and _was_cut(line):
                continue
            raise ValueError(
                f"{path}, line {number}, is no answer of an earlier run. Choose another --output."
            )
        if "error" in answer:
            whole = False
        else:
            kept.append(answer)
    return kept, whole


def _decode(line: bytes) -> dict[str, Any] | None:
    """Return the answer or error of a line; None if it is neither."""
    try:
        answer = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict) or not isinstance(answer.get("id"), str):
        return None
    return answer if isinstance(answer.get("answer", answer.get("error")), str) else None


def _was_cut(line: bytes) -> bool:
    """Return True for a possible beginning of a line by `encode`, cut anywhere."""
    text = line.decode(errors="replace")
    start = _START.match(text)
    if start is None:
        return '{"id": "'.startswith(text)
    rest = text[start.end() :]
    return any(rest.startswith(key) or key.startswith(rest) for key in _KEYS)
