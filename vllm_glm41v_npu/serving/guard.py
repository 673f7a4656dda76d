# SPDX-License-Identifier: Apache-2.0
"""The API key on every route, and a limit on every body.

    vllm serve MODEL --api-key KEY --middleware vllm_glm41v_npu.serving.guard.Guard

vLLM asks for its key below /v1, /v2 and /inference alone: /invocations answers a whole chat without
it. The guard asks for the same keys on all routes but /health; an unknown or oddly written path is
guarded too, since only the one open path is named. `glm41v serve` puts it in.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from contextlib import suppress
from typing import Any

from vllm_glm41v_npu.serving.asgi import HEALTH, App, Message, Receive, Send, route_path
from vllm_glm41v_npu.serving.bodies import (
    VALUES_COUNTED,
    BodyCount,
    TooLarge,
    drain,
    max_body_bytes,
)

OPEN_PATH = HEALTH
"""The path for load balancers, which have no key; it only says whether the engine lives."""

logger = logging.getLogger(f"vllm.{__name__}")


def api_keys(scope: Message) -> list[str]:
    """Return the keys that vLLM takes: those of --api-key, else that of VLLM_API_KEY, else none.

    Args:
        scope: The scope of a request, as Starlette hands it to middleware: it holds vLLM's
            application.
    """
    arguments = getattr(getattr(scope.get("app"), "state", None), "args", None)
    given = getattr(arguments, "api_key", None) or [os.environ.get("VLLM_API_KEY")]
    return [key for key in given if key]


def is_authorized(scope: Message) -> bool:
    """Return True where a request has one of the server's keys, or the server has none.

    The key is read as vLLM reads it: from the first Authorization header, "Bearer KEY". The time
    this takes does not depend on how much of a key is right.
    """
    keys = api_keys(scope)
    if not keys:
        return True
    values = (value for name, value in scope["headers"] if name.lower() == b"authorization")
    kind, _, given = next(values, b"").decode("latin-1").partition(" ")
    digest = hashlib.sha256(given.encode()).digest()
    right = False
    for key in keys:
        right |= hmac.compare_digest(digest, hashlib.sha256(key.encode()).digest())
    return right and kind.lower() == "bearer"


class Guard:
    """ASGI middleware around vLLM's application.

    Without a key a request is refused on any route, before a byte of its body is read: 401, or 403
    for a WebSocket. A body that is larger than `bodies` allows: 413.

    Raises ValueError, when the server starts, where VLLM_GLM41V_NPU_MAX_BODY_MB is no positive
    number.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self.max_body = max_body_bytes()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" and not api_keys(scope):
            logger.warning(
                "There is no API key: whoever reaches this server's port is served. Set "
                "VLLM_API_KEY, or give --api-key."
            )
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif not _is_open(scope) and not is_authorized(scope):
            await _refuse(scope, receive, send, 401, "Unauthorized")
        elif scope["type"] == "websocket":
            await self.app(scope, receive, send)
        else:
            await self._limited(scope, receive, send)

    async def _limited(self, scope: Message, receive: Receive, send: Send) -> None:
        from starlette.requests import ClientDisconnect

        try:
            count = BodyCount(scope["headers"], self.max_body)
        except TooLarge as large:
            await drain(receive)
            await _refuse(scope, receive, send, 413, _too_large(large))
            return
        limited = _Limited(scope, receive, send, count)
        inner = {**scope, VALUES_COUNTED: count.is_json}
        with suppress(ClientDisconnect):  # what the application makes of a body that was refused
            await self.app(inner, limited.receive, limited.send)


class _Limited:
    """Counts a body as the application reads it; ends the request where it is too large."""

    def __init__(self, scope: Message, receive: Receive, send: Send, count: BodyCount) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._count = count
        self._started = self._refused = False

    async def receive(self) -> Message:
        message: Message = {"type": "http.disconnect"} if self._refused else await self._receive()
        if message["type"] != "http.request":
            return message
        try:
            self._count.add(message.get("body", b""))
        except TooLarge as large:
            self._refused = True
            if message.get("more_body"):
                await drain(self._receive)
            if not self._started:
                await _refuse(self._scope, self._receive, self._send, 413, _too_large(large))
            return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        self._started = True
        if not self._refused:  # the application's own answer to the cut would be a second one
            await self._send(message)


def _is_open(scope: Message) -> bool:
    """Return True for requests answered without a key: the health check, a browser's preflight.

    A preflight (OPTIONS with both headers, which browsers send without a key) is answered by vLLM's
    CORS middleware and reaches no route.
    """
    if scope["type"] != "http":
        return False
    if route_path(scope) == OPEN_PATH:
        return True
    names = {name.lower() for name, _ in scope["headers"]}
    return scope["method"] == "OPTIONS" and {b"origin", b"access-control-request-method"} <= names


def _too_large(large: TooLarge) -> dict[str, Any]:
    return {"message": str(large), "type": "Request Entity Too Large", "param": None, "code": 413}


async def _refuse(scope: Message, receive: Receive, send: Send, status: int, error: Any) -> None:
    """Answer in vLLM's form; a WebSocket's handshake is refused with 403, by the server."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    from starlette.responses import JSONResponse

    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    await JSONResponse({"error": error}, status, headers)(scope, receive, send)
