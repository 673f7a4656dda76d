# SPDX-License-Identifier: Apache-2.0
"""vLLM's answers in the words and frames of MindIE's `POST /generate`.

Source: MindIE-LLM 8b4871ad, src/server/endpoint (utils/http_rest_resource.h and the two
single_req_{vllm,tgi_text}_infer_interface.cpp).
"""

from __future__ import annotations

import json
from typing import Any

from vllm_glm41v_npu.serving.mindie.errors import Reply
from vllm_glm41v_npu.serving.mindie.fields import dumps
from vllm_glm41v_npu.serving.mindie.request import Translation


def whole_reply(asked: Translation, body: bytes) -> Reply:
    """Return MindIE's answer to a request without streaming, for vLLM's `body`."""
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
    """Return the text of a completion's or chat's choice, or of a delta; reasoning comes first."""
    message = choice.get("message") or choice.get("delta") or {}
    parts = (choice.get("text"), message.get("reasoning"), message.get("content"))
    return "".join(part or "" for part in parts)


class Frames:
    """Makes the frames of one streamed answer."""

    def __init__(self, asked: Translation) -> None:
        self._asked = asked
        self._text = ""
        self._tokens = 0
        self._prompt_tokens = 0
        self._last: dict[str, Any] | None = None

    def frame(self, event: dict[str, Any]) -> bytes:
        """Return MindIE's frame for one event of vLLM's stream; empty where it has none."""
        if self._asked.style == "vllm":
            return self._vllm_frame(event["choices"])
        self._prompt_tokens = (event.get("usage") or {}).get("prompt_tokens", self._prompt_tokens)
        return b"".join(map(self._tgi_frame, event["choices"]))

    def last(self) -> bytes:
        """Return the frame that ends a stream; empty where there is none to send."""
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
