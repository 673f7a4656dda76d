# SPDX-License-Identifier: Apache-2.0
"""MindIE's `POST /generate` and `/generate_stream`, for its clients.

    vllm serve MODEL --middleware vllm_glm41v_npu.serving.mindie.MindIERoutes

Each request is translated into one of vLLM's own routes, which answers it in the same application:
its limits, keys and allowed media hold. /v1/chat/completions takes MindIE's forms beside vLLM's
(`mindie_chat`). Everything else passes through, /health and /v1/models too.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from .mindie_chat import chat_body
from .mindie_fields import Refused
from .mindie_reply import (
    Frames,
    Reply,
    error_reply,
    leaves_no_room,
    translated_error,
    whole_reply,
)
from .mindie_request import (
    CHAT,
    COMPLETIONS,
    MAX_BODY_MB,
    MAX_ITER_TIMES,
    MAX_ITER_TIMES_VARIABLE,
    Translation,
    translate,
)

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

ROUTES = {"/generate": False, "/generate_stream": True}
"""Path to whether it streams in the TGI style."""

CLIENT_HAS_GONE = b"null"
"""The body that vLLM's `with_cancellation` leaves."""

logger = logging.getLogger(f"vllm.{__name__}")


class MindIERoutes:
    """ASGI middleware around vLLM's application.

    Raises ValueError, when the server starts, where VLLM_GLM41V_NPU_MINDIE_MAX_ITER_TIMES is no
    positive number.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self.max_iter_times = _max_iter_times()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or scope["method"] != "POST" or path not in (*ROUTES, CHAT):
            await self.app(scope, receive, send)
            return
        try:
            if path == CHAT:
                await self._chat(scope, receive, send)
            else:
                await self._generate(path, scope, receive, send)
        except Refused as refused:
            await _send_reply(send, error_reply(refused.message, refused.status))
        except _ClientGone:
            logger.debug("A client left before it had asked.")

    async def _chat(self, scope: Message, receive: Receive, send: Send) -> None:
        body = chat_body(await _body(receive))
        await self.app(_scope(scope, CHAT, len(body)), _receive(body, receive), send)

    async def _generate(self, path: str, scope: Message, receive: Receive, send: Send) -> None:
        try:
            data = await _body(receive, MAX_BODY_MB << 20)
        except _TooLarge:
            message = f"Request body too large. Maximum allowed size is {MAX_BODY_MB}MB."
            await _send_reply(send, Reply(413, json.dumps({"message": message}).encode()))
        else:
            asked = translate(data, self.max_iter_times, ROUTES[path])
            await self._answer(asked, scope, receive, send)

    async def _answer(
        self, asked: Translation, scope: Message, receive: Receive, send: Send
    ) -> None:
        answer = await self._ask(asked, scope, receive, send)
        if leaves_no_room(answer.status, answer.body):
            # MindIE ends an answer where the context ends.
            room = await self._room(asked, scope, receive, send)
            asked = asked._replace(body=asked.body | {"max_tokens": room})
            answer = await self._ask(asked, scope, receive, send)
        await answer.finish()

    async def _room(
        self, asked: Translation, scope: Message, receive: Receive, send: Send
    ) -> int | None:
        """For how many tokens there is room; None where vLLM finds out itself, in a chat."""
        if asked.path != COMPLETIONS:
            return None
        body = {"prompt": asked.body["prompt"], "stream": False}
        question = asked._replace(path="/tokenize", body=body)
        counted = await self._ask(question, scope, receive, send)
        if counted.status != 200:
            return 1
        count = json.loads(counted.body)
        return max(1, count["max_model_len"] - count["count"])

    async def _ask(
        self, asked: Translation, scope: Message, receive: Receive, send: Send
    ) -> _Answer:
        answer = _Answer(asked, send)
        body = json.dumps(asked.body).encode()
        try:
            await self.app(
                _scope(scope, asked.path, len(body)), _receive(body, receive), answer.take
            )
        except Exception as error:  # as vLLM's own handler, which is further out, would answer
            answer.fail(error)
        return answer


class _TooLarge(Exception):
    """A body of more than MAX_BODY_MB."""


class _ClientGone(Exception):
    """The client left before its body was whole."""


class _Answer:
    """Takes the messages of vLLM's answer, and sends on those of MindIE's."""

    def __init__(self, asked: Translation, send: Send) -> None:
        self.status = 500
        self.body = b""
        self._asked = asked
        self._send = send
        self._frames = Frames(asked)
        self._streams = False
        self._failed = False

    async def take(self, message: Message) -> None:
        """The `send` of the inner application."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body" and not self._failed:
            self.body += message.get("body", b"")
            if self.status == 200 and self._asked.body["stream"]:
                await self._send_frames()

    def fail(self, error: Exception) -> None:
        """The inner application raised `error`."""
        from vllm.entrypoints.serve.utils.error_response import create_error_response

        response = create_error_response(error)
        self.status, self.body = response.error.code, response.model_dump_json().encode()
        if self.status >= 500:
            logger.error("A request to /generate failed.", exc_info=error)

    async def finish(self) -> None:
        """Send what is left to send."""
        if self._streams:
            await self._send_body(self._frames.last())
            await self._send_body(b"", more=False)
        elif self.status == 200 and self.body != CLIENT_HAS_GONE:
            await _send_reply(self._send, whole_reply(self._asked, self.body))
        elif self.status != 200:
            await _send_reply(self._send, translated_error(self.status, self.body))

    async def _send_frames(self) -> None:
        *events, self.body = self.body.split(b"\n\n")
        for event in events:
            data = event.removeprefix(b"data: ")
            if data == b"[DONE]":
                continue
            content = json.loads(data)
            if "error" in content:
                self._failed = True
                if not self._streams:
                    self.status, self.body = content["error"]["code"], data
                return  # a stream that has begun only ends, as in MindIE
            await self._send_body(self._frames.frame(content))

    async def _send_body(self, data: bytes, more: bool = True) -> None:
        if not self._streams:
            self._streams = True
            await self._send(_start(200, "text/event-stream"))
        if data or not more:
            await self._send({"type": "http.response.body", "body": data, "more_body": more})


def _max_iter_times() -> int:
    found = os.environ.get(MAX_ITER_TIMES_VARIABLE, str(MAX_ITER_TIMES))
    if not found.isascii() or not found.isdecimal() or int(found) == 0:
        raise ValueError(
            f"{MAX_ITER_TIMES_VARIABLE}={found}; expected the most tokens of an answer, 1 or more."
        )
    return int(found)


async def _body(receive: Receive, most: float = math.inf) -> bytes:
    """A request's body; raises _TooLarge or _ClientGone."""
    data = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGone
        data += message.get("body", b"")
        if len(data) > most:
            raise _TooLarge
        if not message.get("more_body"):
            return bytes(data)


def _scope(scope: Message, path: str, length: int) -> Message:
    """The scope of the translated request: the client's, but for the path and the body."""
    path = scope.get("root_path", "") + path
    replaced = (b"content-type", b"content-length", b"transfer-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in replaced]
    headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % length)]
    return {**scope, "path": path, "raw_path": path.encode(), "headers": headers}


def _receive(body: bytes, receive: Receive) -> Receive:
    """The `receive` of the translated request: its body, then what the client does."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_next() -> Message:
        return messages.pop() if messages else await receive()

    return receive_next


def _start(status: int, content_type: str) -> Message:
    headers = [(b"content-type", content_type.encode())]
    return {"type": "http.response.start", "status": status, "headers": headers}


async def _send_reply(send: Send, reply: Reply) -> None:
    start = _start(reply.status, "application/json")
    start["headers"].append((b"content-length", b"%d" % len(reply.body)))
    await send(start)
    await send({"type": "http.response.body", "body": reply.body})
