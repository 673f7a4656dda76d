# SPDX-License-Identifier: Apache-2.0
"""An application that is not vLLM, and a client of MindIE's routes around it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from vllm_glm41v_npu.serving.mindie.routes import MindIERoutes


class Response(NamedTuple):
    status: int
    content_type: str
    chunks: list[bytes]

    @property
    def json(self) -> Any:
        return json.loads(b"".join(self.chunks))


class Inner:
    """Answers with what it is given, in turn, and remembers what it was asked."""

    def __init__(self, *answers: tuple[int, Iterable[Any]] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[dict[str, Any], Any]] = []
        self.saw_disconnect = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        first = await receive()
        body = first["body"] + ((await receive())["body"] if first["more_body"] else b"")
        self.asked.append((scope, json.loads(body)))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, chunks = answer
        await send({"type": "http.response.start", "status": status, "headers": []})
        for chunk in chunks:
            if isinstance(chunk, Exception):
                raise chunk
            data = chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode()
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        self.saw_disconnect = (await receive())["type"] == "http.disconnect"


def call(inner: Inner, body: Any, path: str = "/generate", method: str = "POST") -> Response | None:
    """The response, or None where there was none."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    incoming: list[dict[str, Any]] = [{"type": "http.disconnect"}]
    half = len(data) // 2
    incoming.append({"type": "http.request", "body": data[half:], "more_body": False})
    incoming.append({"type": "http.request", "body": data[:half], "more_body": True})
    sent: list[Any] = []

    async def receive() -> Any:
        return incoming.pop() if len(incoming) > 1 else incoming[0]

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"Authorization", b"Bearer key"), (b"content-length", b"%d" % len(data))]
    scope = {"type": "http", "method": method, "path": f"/base{path}", "root_path": "/base"}
    asyncio.run(MindIERoutes(inner)({**scope, "headers": headers}, receive, send))
    if not sent:
        return None
    assert not sent[-1].get("more_body")
    chunks = [message["body"] for message in sent[1:] if message["body"]]
    kind = dict(sent[0]["headers"]).get(b"content-type", b"").decode()
    return Response(sent[0]["status"], kind, chunks)


def events(*contents: Any) -> list[bytes]:
    """A stream of vLLM's, cut at places of no meaning."""
    data = b"".join(b"data: %s\n\n" % json.dumps(content).encode() for content in contents)
    data += b"data: [DONE]\n\n"
    return [data[start : start + 37] for start in range(0, len(data), 37)]
