# SPDX-License-Identifier: Apache-2.0
"""Requests of MindIE's clients, and what the tiny checkpoint answers."""

from __future__ import annotations

from typing import Any

import httpx

from tests.checkpoints import TINY

ASSETS = TINY.parent
PICTURE, CLIP = ASSETS / "pictures" / "printed.png", ASSETS / "videos" / "numbers.mp4"
QUESTION, FIRST = "What number is written in the picture?", "Which number comes first?"
THINKING, NUMBER = "I see the digits 6 0 2 1.", "6021"
WRITTEN = f"<think>{THINKING}</think><answer>{NUMBER}</answer>"


def parts(text: str, *urls: Any) -> list[dict[str, Any]]:
    """The prompt of the seed's requests: the text first."""
    media = []
    for url in urls:
        is_video = isinstance(url, str) and ("video" in url[:10] or url.endswith(".mp4"))
        kind = "video_url" if is_video else "image_url"
        media.append({"type": kind, kind: url})
    return [{"type": "text", "text": text}, *media]


def generate(server: httpx.Client, prompt: Any, **fields: Any) -> httpx.Response:
    return server.post("/generate", json={"prompt": prompt, "max_tokens": 128} | fields)


def chat(server: httpx.Client, **fields: Any) -> httpx.Response:
    content = [
        {"type": "image_url", "image_url": {"url": PICTURE.as_uri()}},
        {"type": "text", "text": QUESTION},
    ]
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0}
    return server.post("/v1/chat/completions", json=body | {"model": "glm4v"} | fields)


def error(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    kinds = {422: "Input Validation Error", 404: "NotFoundError", 424: "Generation Error"}
    body = response.json()
    assert body["error_type"] == kinds[status]
    return body["error"]
