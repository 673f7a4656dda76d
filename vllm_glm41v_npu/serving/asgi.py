# SPDX-License-Identifier: Apache-2.0
"""ASGI as the middleware of this package uses it: its types, vLLM's routes, parts of messages.

Imports nothing of vLLM.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BATCH = f"{CHAT}/batch"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
HEALTH = "/health"
"""Paths of vLLM's routes."""


def route_path(scope: Message) -> str:
    """Return the path by which Starlette finds the route."""
    return scope.get("path", "").removeprefix(scope.get("root_path", ""))


def translated_scope(scope: Message, path: str, length: int) -> Message:
    """Return a client's scope for a request to `path` with a JSON body of `length` bytes."""
    path = scope.get("root_path", "") + path
    replaced = (b"content-type", b"content-length", b"transfer-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in replaced]
    headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % length)]
    return {**scope, "path": path, "raw_path": path.encode(), "headers": headers}


def body_then(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives `body` first, and then what the client does."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_next() -> Message:
        return messages.pop() if messages else await receive()

    return receive_next


def response_start(status: int, content_type: str, length: int | None = None) -> Message:
    """Return the first message of a response; without a `length` the body is a stream."""
    headers = [(b"content-type", content_type.encode())]
    if length is not None:
        headers.append((b"content-length", b"%d" % length))
    return {"type": "http.response.start", "status": status, "headers": headers}


async def send_json(send: Send, status: int, body: bytes) -> None:
    """Send a whole response whose body is JSON."""
    await send(response_start(status, "application/json", len(body)))
    await send({"type": "http.response.body", "body": body})
