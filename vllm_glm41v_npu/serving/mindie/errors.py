# SPDX-License-Identifier: Apache-2.0
"""MindIE's bodies of errors, and vLLM's errors translated into them.

Source: MindIE-LLM 8b4871ad, src/server/endpoint/utils/http_rest_resource.h.
"""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import NamedTuple

from vllm_glm41v_npu.serving.mindie.fields import dumps

ERROR_TYPES = {
    400: "Bad Request",
    404: "NotFoundError",
    422: "Input Validation Error",
    424: "Generation Error",
    500: "Incomplete Generation",
    503: "Service Unavailable",
}

_TOKENS = re.compile(
    r"maximum context length is (?P<most>\d+) tokens.*"
    r"contains (?P<least>at least )?(?P<found>\d+) input"
)
_CHARACTERS = re.compile(
    r"maximum context length is (?P<most>\d+) tokens.*contains (?P<characters>\d+) characters "
    r"\(more than (?P<bound>\d+) characters.* for (?P<tokens>\d+) input"
)
_TOO_LONG = (
    _TOKENS,
    re.compile(r"length \((?P<found>\d+)\) exceeds model's maximum .*\((?P<most>\d+)\)"),
    re.compile(
        r"\(length (?P<found>\d+)\).* longer than the maximum model length of (?P<most>\d+)"
    ),
)
"""vLLM's messages about a prompt that leaves no room for max_tokens, or for any token."""
_LONG_ANSWER = re.compile(r"max_tokens=\d+ cannot be greater than max_model_len=\D*(?P<most>\d+)")
"""vLLM's message about an answer that is longer than the context, whatever the prompt."""


class Reply(NamedTuple):
    """A whole answer: its status, and its body as JSON."""

    status: int
    body: bytes


def error_reply(message: str, status: int) -> Reply:
    """Return MindIE's answer about an error."""
    kind = ERROR_TYPES.get(status) or HTTPStatus(status).phrase
    return Reply(status, dumps({"error": message, "error_type": kind}).encode())


def too_large(most: int) -> Reply:
    """Return MindIE's answer about a body of more than `most` bytes."""
    message = f"Request body too large. Maximum allowed size is {most >> 20}MB."
    return Reply(413, json.dumps({"message": message}).encode())


class Length(NamedTuple):
    """The length of a prompt that vLLM refused, and the model's context, in tokens."""

    found: int
    most: int
    exact: bool


def refused_length(message: str) -> Length | None:
    """Return the numbers in vLLM's refusal of a prompt by its length; None for other messages.

    A text of far too many characters is refused before it is cut into tokens: it has at least its
    characters divided by those of the longest token.
    """
    if text := _CHARACTERS.search(message):
        characters, bound, tokens = (int(text[key]) for key in ("characters", "bound", "tokens"))
        least = -(-characters * tokens // bound) if bound else 0
        return Length(least, int(text["most"]), exact=False)
    for pattern in _TOO_LONG:
        if refused := pattern.search(message):
            exact = not refused.groupdict().get("least")
            return Length(int(refused["found"]), int(refused["most"]), exact)
    return None


def context_of_shorter_answer(status: int, body: bytes) -> int | None:
    """Return the model's context in tokens, where vLLM refused an answer that fits if shortened.

    None where it answered, or refused something else, or a prompt that leaves no room.
    """
    if status != 400:
        return None
    message = error_message(body)
    if long := _LONG_ANSWER.search(message):
        return int(long["most"])
    length = refused_length(message)
    refused_together = _TOKENS.search(message) or _CHARACTERS.search(message)
    return length.most if refused_together and length and length.found < length.most else None


def translated_error(status: int, body: bytes) -> Reply:
    """Return MindIE's error for one of vLLM's."""
    message = error_message(body)
    length = refused_length(message)
    if status == 400 and length:
        found = f"{length.found}" if length.exact else f"at least {length.found}"
        return error_reply(
            "Failed to enqueue inferRequest. This model's maximum input ids length cannot be "
            f"greater than {length.most},the input ids length is {found}",
            424,
        )
    if status == 400:
        status = 422
    elif status >= 500 and status not in ERROR_TYPES:
        status = 500
    return error_reply(message, status)


def error_message(body: bytes) -> str:
    """Return the sentence in vLLM's error: {"error": {"message": ...}}, {"error": ...} or text."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")
