# SPDX-License-Identifier: Apache-2.0
"""One request to an ASGI application, told to the letter: path, headers, and pieces of a body."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

KEY = "secret"
BEARER = (b"authorization", b"Bearer secret")


class Answer(NamedTuple):
    """What came back: `status` is None where there was no answer; `read` is how much was read."""

    status: int | None
    body: bytes
    read: int
    messages: list[Any]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def served_with(*keys: str) -> Any:
    """An application as middleware sees it in a request's scope, started with these API keys."""
    return SimpleNamespace(state=SimpleNamespace(args=SimpleNamespace(api_key=list(keys) or None)))


def ask(
    app: Any,
    path: str = "/v1/completions",
    headers: Iterable[tuple[bytes, bytes]] = (),
    body: Sequence[bytes] = (b"{}",),
    method: str = "POST",
    kind: str = "http",
    keys: Sequence[str] = (KEY,),
    root_path: str = "",
) -> Answer:
    """The answer of `app`; after the body the client stays until it is answered."""
    waiting, sent, read = list(body), [], 0

    async def receive() -> Any:
        nonlocal read
        if not waiting:
            return {"type": "http.disconnect"}
        piece = waiting.pop(0)
        read += len(piece)
        return {"type": "http.request", "body": piece, "more_body": bool(waiting)}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": kind, "method": method, "path": path, "raw_path": path.encode()}
    scope |= {"headers": list(headers), "root_path": root_path, "app": served_with(*keys)}
    asyncio.run(app(scope, receive, send))
    starts = [message["status"] for message in sent if message["type"] == "http.response.start"]
    assert len(starts) <= 1, "answered twice"
    whole = b"".join(message.get("body", b"") for message in sent)
    return Answer(starts[0] if starts else None, whole, read, sent)
