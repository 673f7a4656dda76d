# SPDX-License-Identifier: Apache-2.0
"""Requests whose picture is processed, and never reaches the engine."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any, NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.end_to_end.servers import MAX_MODEL_LEN, data_uri

CHAT = "/v1/chat/completions"
TOO_LONG = "7" * (MAX_MODEL_LEN - 12)
"""Nine tokens of the template around it still fit, and no picture of four tokens or more does."""


class Unfinished(NamedTuple):
    """A request that the server ends by itself, with this status."""

    path: str
    body: dict[str, Any]
    status: int


def fresh(picture: Image.Image, number: int) -> str:
    """The URL of a picture with the same pixels, in a file that no cache has seen."""
    info, buffer = PngInfo(), io.BytesIO()
    info.add_text("number", str(number))
    picture.save(buffer, "PNG", pnginfo=info)
    return data_uri(buffer.getvalue())


def _with_text(body: dict[str, Any], text: str) -> dict[str, Any]:
    body = copy.deepcopy(body)
    body["messages"][0]["content"][-1]["text"] = text
    return body


def _count_tokens(body: dict[str, Any]) -> Unfinished:
    *pictures, question = body["messages"][0]["content"]
    data = [picture["image_url"]["url"].split(",")[1] for picture in pictures]
    content = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": one}}
        for one in data
    ]
    messages = [{"role": "user", "content": [*content, question]}]
    body = {"model": body["model"], "messages": messages}
    return Unfinished("/v1/messages/count_tokens", body, 200)


def _tokenize(body: dict[str, Any]) -> Unfinished:
    return Unfinished("/tokenize", {key: body[key] for key in ("model", "messages")}, 200)


def _refused(**changes: Any) -> Callable[[dict[str, Any]], Unfinished]:
    return lambda body: Unfinished(CHAT, body | changes, 400)


UNFINISHED: dict[str, Callable[[dict[str, Any]], Unfinished]] = {
    "too long": lambda body: Unfinished(CHAT, _with_text(body, TOO_LONG) | {"max_tokens": 1}, 400),
    "typed placeholder": lambda body: Unfinished(CHAT, _with_text(body, "<|image|> what?"), 400),
    "truncated": _refused(truncate_prompt_tokens=5),
    "greedy twice": _refused(n=2),
    "temperature": _refused(temperature=-1),
    "log-probabilities": _refused(logprobs=True, top_logprobs=100),
    "regex": _refused(structured_outputs={"regex": "(["}),
    "schema": _refused(structured_outputs={"json": {"type": "nope"}}),
    "count tokens": _count_tokens,
    "tokenize": _tokenize,
}
"""Name to what makes such a request of a good chat with pictures."""
