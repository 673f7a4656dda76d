# SPDX-License-Identifier: Apache-2.0
"""MindIE's `POST /generate` and `/generate_stream`, for its clients.

    vllm serve MODEL --middleware vllm_glm41v_npu.serving.mindie.MindIERoutes

Each request is translated into one of vLLM's own routes, which answers it in the same application:
its limits, keys and allowed media hold. /v1/chat/completions takes MindIE's forms beside vLLM's
(`chat`). Everything else passes through, /health and /v1/models too. A body is read only after the
API key was seen, and up to a limit.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from vllm_glm41v_npu.processing.limits import positive
from vllm_glm41v_npu.serving.asgi import (
    CHAT,
    App,
    Message,
    Receive,
    Send,
    body_then,
    route_path,
    send_json,
    translated_scope,
)
from vllm_glm41v_npu.serving.bodies import (
    ClientGone,
    TooLarge,
    TooManyValues,
    max_body_bytes,
    read_body,
)
from vllm_glm41v_npu.serving.guard import is_authorized
from vllm_glm41v_npu.serving.mindie.answer import CLIENT_HAS_GONE, Answer
from vllm_glm41v_npu.serving.mindie.chat import chat_body
from vllm_glm41v_npu.serving.mindie.errors import context_of_shorter_answer, error_reply, too_large
from vllm_glm41v_npu.serving.mindie.fields import Refused
from vllm_glm41v_npu.serving.mindie.request import (
    MAX_BODY_MB,
    MAX_ITER_TIMES,
    MAX_ITER_TIMES_VARIABLE,
    Translation,
    translate,
)

Result = TypeVar("Result")

ROUTES = {"/generate": False, "/generate_stream": True}
"""Path to True where it streams in the TGI style."""

logger = logging.getLogger(f"vllm.{__name__}")


class MindIERoutes:
    """ASGI middleware around vLLM's application.

    Raises ValueError, when the server starts, where VLLM_GLM41V_NPU_MINDIE_MAX_ITER_TIMES or
    VLLM_GLM41V_NPU_MAX_BODY_MB is no positive number.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self.max_iter_times = positive(
            MAX_ITER_TIMES_VARIABLE, MAX_ITER_TIMES, "the most tokens of an answer"
        )
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
                await self._generate(ROUTES[path], scope, receive, send)
        except Refused as refused:
            await send_json(send, *error_reply(refused.message, refused.status))
        except ClientGone:
            logger.debug("A client left before its request was whole.")

    async def _generate(self, streams: bool, scope: Message, receive: Receive, send: Send) -> None:
        """Read a request of /generate, translate it, ask vLLM, and answer in MindIE's form."""
        most = min(MAX_BODY_MB << 20, self.max_body)
        try:
            data = await read_body(scope, receive, most)
        except TooManyValues as many:
            raise Refused(str(many), 413) from many
        except TooLarge:
            await send_json(send, *too_large(most))
            return
        asked = await self._apart(translate, data, self.max_iter_times, streams)
        answer = await self._ask(asked, scope, receive, send)
        context = context_of_shorter_answer(answer.status, answer.body)
        if context is not None:  # MindIE ends an answer where the context ends
            answer = await self._ask_for_less(asked, context, scope, receive, send)
        await answer.finish()

    async def _ask(
        self, asked: Translation, scope: Message, receive: Receive, send: Send
    ) -> Answer:
        """Have vLLM's application answer a translated request; a stream is sent on meanwhile."""
        answer = Answer(asked, send)
        body = await self._apart(lambda: json.dumps(asked.body).encode())
        inner = translated_scope(scope, asked.path, len(body))
        try:
            await self.app(inner, body_then(body, receive), answer.take)
        except Exception as error:  # as vLLM's own handler, which is further out, would answer
            answer.fail(error)
        return answer

    async def _ask_for_less(
        self, asked: Translation, context: int, scope: Message, receive: Receive, send: Send
    ) -> Answer:
        """Ask for the answer that fits behind the prompt in a context of that many tokens."""

        def ask(**body: Any) -> Awaitable[Answer]:
            changed = asked._replace(body=asked.body | body)
            return self._ask(changed, scope, receive, send)

        if asked.path == CHAT:  # vLLM finds the end itself
            return await ask(max_tokens=None)
        # One token, to learn the prompt's length: vLLM checks it first, and keeps it in its cache.
        first = await ask(max_tokens=1, n=1, stream=False, stream_options=None)
        if first.status != 200 or first.body == CLIENT_HAS_GONE:
            return first
        prompt = json.loads(first.body)["usage"]["prompt_tokens"]
        return await ask(max_tokens=max(1, context - prompt))

    async def _chat(self, scope: Message, receive: Receive, send: Send) -> None:
        """Put MindIE's forms in a chat into vLLM's, and let vLLM answer it."""
        try:
            data = await read_body(scope, receive, self.max_body)
        except TooLarge as large:
            raise Refused(str(large), 413) from large
        body = await self._apart(chat_body, data)
        await self.app(translated_scope(scope, CHAT, len(body)), body_then(body, receive), send)

    async def _apart(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Work on JSON in another thread, so that other requests are answered meanwhile."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, work, *arguments)
