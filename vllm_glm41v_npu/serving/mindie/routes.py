# SPDX-License-Identifier: Apache-2.0
"""MindIE's `POST /generate` and `/generate_stream`, for its clients.

    vllm serve MODEL --middleware vllm_glm41v_npu.serving.mindie.MindIERoutes

Each request is translated into one of vLLM's own routes, which answers it in the same application:
its limits, keys and allowed media hold. /v1/chat/completions takes MindIE's forms beside vLLM's
(`mindie_chat`). Everything else passes through, /health and /v1/models too. A body is read only
after the API key was seen, and up to a limit.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from vllm_glm41v_npu.serving.bodies import BodyCount, TooLarge, TooManyValues, drain, max_body_bytes
from vllm_glm41v_npu.serving.guard import App, Message, Receive, Send, is_authorized, route_path
from vllm_glm41v_npu.serving.mindie.chat import chat_body
from vllm_glm41v_npu.serving.mindie.fields import Refused
from vllm_glm41v_npu.serving.mindie.reply import (
    Frames,
    Reply,
    context_of_shorter_answer,
    error_reply,
    translated_error,
    whole_reply,
)
from vllm_glm41v_npu.serving.mindie.request import (
    CHAT,
    MAX_BODY_MB,
    MAX_ITER_TIMES,
    MAX_ITER_TIMES_VARIABLE,
    Translation,
    translate,
)

Result = TypeVar("Result")

ROUTES = {"/generate": False, "/generate_stream": True}
"""Path to whether it streams in the TGI style."""

CLIENT_HAS_GONE = b"null"
"""The body that vLLM's `with_cancellation` leaves."""

logger = logging.getLogger(f"vllm.{__name__}")


class MindIERoutes:
    """ASGI middleware around vLLM's application.

    Raises ValueError, when the server starts, where VLLM_GLM41V_NPU_MINDIE_MAX_ITER_TIMES or
    VLLM_GLM41V_NPU_MAX_BODY_MB is no positive number.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self.max_iter_times = _max_iter_times()
        self.max_body = max_body_bytes()
        self._threads = ThreadPoolExecutor(2, "mindie")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        path = route_path(scope)
        if scope["type"] != "http" or scope["method"] != "POST" or path not in (*ROUTES, CHAT):
            await self.app(scope, receive, send)
            return
        try:
            if not is_authorized(scope):  # vLLM, which is further in, looks only after the body
                raise Refused("Unauthorized", 401)
            if path == CHAT:
                await self._chat(scope, receive, send)
            else:
                await self._generate(path, scope, receive, send)
        except Refused as refused:
            await _send_reply(send, error_reply(refused.message, refused.status))
        except _ClientGone:
            logger.debug("A client left before it had asked.")

    async def _chat(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            data = await _body(scope, receive, self.max_body)
        except TooLarge as large:
            raise Refused(str(large), 413) from large
        body = await self._apart(chat_body, data)
        await self.app(_scope(scope, CHAT, len(body)), _receive(body, receive), send)

    async def _generate(self, path: str, scope: Message, receive: Receive, send: Send) -> None:
        most = min(MAX_BODY_MB << 20, self.max_body)
        try:
            data = await _body(scope, receive, most)
        except TooManyValues as many:
            raise Refused(str(many), 413) from many
        except TooLarge:
            message = f"Request body too large. Maximum allowed size is {most >> 20}MB."
            await _send_reply(send, Reply(413, json.dumps({"message": message}).encode()))
        else:
            asked = await self._apart(translate, data, self.max_iter_times, ROUTES[path])
            await self._answer(asked, scope, receive, send)

    async def _apart(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Work on JSON in another thread, so that other requests are answered meanwhile."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, work, *arguments)

    async def _answer(
        self, asked: Translation, scope: Message, receive: Receive, send: Send
    ) -> None:
        answer = await self._ask(asked, scope, receive, send)
        most = context_of_shorter_answer(answer.status, answer.body)
        if most is not None:  # MindIE ends an answer where the context ends
            answer = await self._shorter(asked, most, scope, receive, send)
        await answer.finish()

    async def _shorter(
        self, asked: Translation, most: int, scope: Message, receive: Receive, send: Send
    ) -> _Answer:
        """The answer that fits behind the prompt in a context of `most` tokens."""

        def ask(**body: Any) -> Awaitable[_Answer]:
            changed = asked._replace(body=asked.body | body)
            return self._ask(changed, scope, receive, send)

        if asked.path == CHAT:  # vLLM finds the end itself
            return await ask(max_tokens=None)
        # One token, to learn the prompt's length: vLLM checks it first, and keeps it in its cache.
        first = await ask(max_tokens=1, n=1, stream=False, stream_options=None)
        if first.status != 200 or first.body == CLIENT_HAS_GONE:
            return first
        prompt = json.loads(first.body)["usage"]["prompt_tokens"]
        return await ask(max_tokens=max(1, most - prompt))

    async def _ask(
        self, asked: Translation, scope: Message, receive: Receive, send: Send
    ) -> _Answer:
        answer = _Answer(asked, send)
        body = await self._apart(lambda: json.dumps(asked.body).encode())
        try:
            await self.app(
                _scope(scope, asked.path, len(body)), _receive(body, receive), answer.take
            )
        except Exception as error:  # as vLLM's own handler, which is further out, would answer
            answer.fail(error)
        return answer


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
        from vllm_glm41v_npu.upstream import create_error_response

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


async def _body(scope: Message, receive: Receive, most: int) -> bytes:
    """A request's body of at most `most` bytes; raises TooLarge or _ClientGone."""
    data, more = bytearray(), True
    try:
        count = BodyCount(scope["headers"], most, is_json=True)
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientGone
            more = message.get("more_body", False)
            count.add(message.get("body", b""))
            data += message.get("body", b"")
    except TooLarge:
        data.clear()
        if more:
            await drain(receive)
        raise
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
