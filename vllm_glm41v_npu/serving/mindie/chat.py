# SPDX-License-Identifier: Apache-2.0
"""MindIE's own forms in a body of `/v1/chat/completions`, put into vLLM's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from vllm_glm41v_npu.serving.mindie.request import PICTURE, VIDEO, media_url

_MINDIE_FORMS = {
    b'_url"': re.compile(rb'\s*:\s*"'),
    b'"do_sample"': re.compile(rb"\s*:\s*false"),
}
"""The end of a key, and what follows it in a body that has MindIE's form of it."""


def chat_body(data: bytes) -> bytes:
    """Return a body for vLLM: media as objects, and greedy where `do_sample` is false.

    MindIE itself reads no `do_sample` here, and samples. A body with neither stays as it is, and so
    does one that is no JSON, which vLLM refuses.

    Raises Refused about a string that names no medium.
    """
    if not _has_forms(data):
        return data
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return data
    if not isinstance(body, dict):
        return data
    for part in _parts(body):
        for kind in (PICTURE, VIDEO):
            if isinstance(part.get(kind), str):
                part[kind] = {"url": media_url(kind, part[kind])}
    if body.get("do_sample") is False:
        body["temperature"] = 0
    return json.dumps(body).encode()


def _has_forms(data: bytes) -> bool:
    """Return True where a body has to be parsed; looking for keys is faster than parsing."""
    for key, follows in _MINDIE_FORMS.items():
        place = data.find(key)
        while place >= 0:
            end = place + len(key)
            if follows.match(data, end):
                return True
            place = data.find(key, end)
    return False


def _parts(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict):
                yield part
