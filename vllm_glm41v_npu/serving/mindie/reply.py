# SPDX-License-Identifier: Apache-2.0
"""vLLM's answers in the words and frames of MindIE's `POST /generate`.

Source: MindIE-LLM 8b4871ad, src/server/endpoint (utils/http_rest_resource.h and the two
single_req_{vllm,tgi_text}_infer_interface.cpp).
"""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any, NamedTuple

from vllm_glm41v_npu.serving.mindie.fields import dumps
from vllm_glm41v_npu.serving.mindie.request import Translation

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
"""What vLLM says of a prompt that leaves no room for max_tokens, or for any token."""
_LONG_ANSWER = re.compile(r"max_tokens=\d+ cannot be greater than max_model_len=\D*(?P<most>\d+)")
"""What vLLM says of an answer that would be longer than the context, whatever the prompt."""


class Reply(NamedTuple):
    """A whole answer: its status, and its body as JSON."""

    status: int
    body: bytes


def error_reply(message: str, status: int) -> Reply:
    """MindIE's body of an error."""
    kind = ERROR_TYPES.get(status) or HTTPStatus(status).phrase
    return Reply(status, dumps({"error": message, "error_type": kind}).encode())


class Length(NamedTuple):
    """How long a prompt is that vLLM refused, and the model's context, in tokens."""

    found: int
    most: int
    exact: bool


def refused_length(message: str) -> Length | None:
    """The numbers in vLLM's refusal of a prompt by its length; None where it says another thing.

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
    """The model's context in tokens, where vLLM refused an answer that may fit if it is shorter.

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
    """MindIE's error for one of vLLM's."""
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
    """The sentence in an error of vLLM's: {"error": {"message": ...}}, {"error": ...} or text."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")


def whole_reply(asked: Translation, body: bytes) -> Reply:
    """The answer to a request without streaming."""
    answer = json.loads(body)
    if asked.style == "vllm":
        texts = [f"{asked.text} {_text(choice)}" for choice in answer["choices"]]
        return Reply(200, dumps({"text": texts}).encode())
    (choice,) = answer["choices"]
    content: dict[str, Any] = {}
    if asked.details:
        content["details"] = _tgi_details(asked, answer, choice)
    content["generated_text"] = _text(choice)
    return Reply(200, dumps(content).encode())


def _tgi_details(
    asked: Translation, answer: dict[str, Any], choice: dict[str, Any]
) -> dict[str, Any]:
    prompt = answer.get("prompt_token_ids") or choice.get("prompt_token_ids") or []
    return {
        "prompt_tokens": answer["usage"]["prompt_tokens"],
        "finish_reason": _finish_reason(choice),
        "generated_tokens": answer["usage"]["completion_tokens"],
        "prefill": list(map(_tgi_token, prompt if asked.prompt_tokens else ())),
        "seed": asked.body.get("seed"),
        "tokens": list(map(_tgi_token, choice["token_ids"])),
    }


def _tgi_token(token: int) -> dict[str, Any]:
    return {"id": token, "logprob": None, "special": None, "text": None}


def _finish_reason(choice: dict[str, Any]) -> str:
    reasons = {"stop": "eos_token", "length": "length"}
    return reasons.get(choice["finish_reason"], "stop_sequence")


def _text(choice: dict[str, Any]) -> str:
    """Of a choice of a completion, a chat, or a delta of one; reasoning comes before content."""
    message = choice.get("message") or choice.get("delta") or {}
    parts = (choice.get("text"), message.get("reasoning"), message.get("content"))
    return "".join(part or "" for part in parts)


class Frames:
    """The frames of one streamed answer."""

    def __init__(self, asked: Translation) -> None:
        self._asked = asked
        self._text = ""
        self._tokens = 0
        self._prompt_tokens = 0
        self._last: dict[str, Any] | None = None

    def frame(self, event: dict[str, Any]) -> bytes:
        """MindIE's frame for one event of vLLM's stream; empty where it has none."""
        if self._asked.style == "vllm":
            return self._vllm_frame(event["choices"])
        self._prompt_tokens = (event.get("usage") or {}).get("prompt_tokens", self._prompt_tokens)
        return b"".join(map(self._tgi_frame, event["choices"]))

    def last(self) -> bytes:
        """What comes when vLLM has sent all."""
        if self._last is None:
            return b""
        details = None
        if self._asked.details:
            details = {
                "prompt_tokens": self._prompt_tokens,
                "finish_reason": _finish_reason(self._last),
                "generated_tokens": self._tokens,
                "seed": self._asked.body.get("seed"),
            }
        return self._tgi_data(self._last, self._text, details)

    def _vllm_frame(self, choices: list[dict[str, Any]]) -> bytes:
        texts = [""] * self._asked.body["n"]
        for choice in choices:
            texts[choice["index"]] += _text(choice)
        ends = any(choice.get("finish_reason") for choice in choices)
        return dumps({"text": texts}).encode() + b"\0" if any(texts) or ends else b""

    def _tgi_frame(self, choice: dict[str, Any]) -> bytes:
        self._text += _text(choice)
        self._tokens += len(choice.get("token_ids") or ())
        if choice.get("finish_reason"):
            self._last = choice  # waits for the number of prompt tokens
            return b""
        return self._tgi_data(choice, None, None) if choice.get("token_ids") else b""

    def _tgi_data(
        self, choice: dict[str, Any], whole: str | None, details: dict[str, Any] | None
    ) -> bytes:
        token = {
            "id": choice.get("token_ids") or [],
            "text": _text(choice),
            "logprob": None,
            "special": None,
        }
        data = {"token": token, "generated_text": whole, "details": details}
        return f"data: {dumps(data)}\n\n".encode()
