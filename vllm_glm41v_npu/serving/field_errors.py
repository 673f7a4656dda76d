# SPDX-License-Identifier: Apache-2.0
"""Sentences about the errors that pydantic found in a body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm_glm41v_npu.serving.chat_parts import shown

MOST = 3
"""The most sentences about one body, and reasons about one field, of the many pydantic writes."""


def sentences(errors: Sequence[Any], body: Any = None) -> str:
    """Return sentences about the wrong fields of `body`, each once, without its whole value.

    Without a `body` the locations are taken as they are.
    """
    said: dict[str, list[str]] = {}
    for error in errors:
        if not isinstance(error, dict):  # vLLM's own words
            said.setdefault(str(error), [])
            continue
        begin, why = _parts(error, body)
        said.setdefault(begin, [])
        if why and why not in said[begin]:
            said[begin].append(why)
    written = [f"{begin}{' or '.join(why[:MOST])}".rstrip(".") for begin, why in said.items()]
    return ". ".join(written[:MOST]) + "."


def _parts(error: dict[str, Any], body: Any) -> tuple[str, str]:
    """Return (the field with its value, why that is wrong)."""
    kind, message = error.get("type"), str(error.get("msg", ""))
    if kind == "json_invalid":
        why = error.get("ctx", {}).get("error", message)
        return f"The body is no JSON: {why} at character {error['loc'][-1]}", ""
    location = error.get("loc", ())
    if body is None:
        known = location[:-1] if kind == "missing" else location
        path, value = ".".join(map(str, known)), error.get("input")
    else:
        path, value = _place(location, body)
    if kind == "missing":
        return f"{_joined(path, location[-1])} is missing", ""
    if kind == "value_error":
        message = message.removeprefix("Value error, ")
        return (f"{path}: {message}" if path else message), ""
    return f"{path or 'The body'} is {shown(value)}: ", message[:1].lower() + message[1:]


def _place(location: Sequence[Any], body: Any) -> tuple[str, Any]:
    """Return (path, value) of a pydantic location in `body`; a location names types as well."""
    path, value = "", body
    for step in location[1:]:
        if isinstance(value, dict) and step in value:
            path, value = _joined(path, step), value[step]
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            path, value = f"{path}[{step}]", value[step]
    return path, value


def _joined(path: str, step: Any) -> str:
    return f"{path}.{step}" if path else str(step)
