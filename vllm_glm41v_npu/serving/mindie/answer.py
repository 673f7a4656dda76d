# SPDX-License-Identifier: Apache-2.0
"""One answer on its way: vLLM's messages come in, and MindIE's go out to the client."""

from __future__ import annotations

import json
import logging

from vllm_glm41v_npu.serving.asgi import Message, Send, response_start, send_json
from vllm_glm41v_npu.serving.mindie.errors import translated_error
from vllm_glm41v_npu.serving.mindie.reply import Frames, whole_reply
from vllm_glm41v_npu.serving.mindie.request import Translation

CLIENT_HAS_GONE = b"null"
"""The body that vLLM's `with_cancellation` leaves."""

logger = logging.getLogger(f"vllm.{__name__}")


class Answer:
    """Takes the messages of vLLM's answer to one request, and sends MindIE's.

    A stream is sent on as it comes; anything else, an error too, waits for `finish`.

    Args:
        asked: The translated request.
        send: The client's.
    """

    def __init__(self, asked: Translation, send: Send) -> None:
        self.status = 500
        self.body = b""
        self._asked = asked
        self._send = send
        self._frames = Frames(asked)
        self._streams = False
        self._failed = False

    async def take(self, message: Message) -> None:
        """Take one message; the `send` of vLLM's application."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body" and not self._failed:
            self.body += message.get("body", b"")
            if self.status == 200 and self._asked.body["stream"]:
                await self._send_frames()

    def fail(self, error: Exception) -> None:
        """Take an error that vLLM's application raised."""
        from vllm_glm41v_npu.upstream import create_error_response

        response = create_error_response(error)
        self.status, self.body = response.error.code, response.model_dump_json().encode()
        if self.status >= 500:
            logger.error("A request to /generate failed.", exc_info=error)

    async def finish(self) -> None:
        """Send the rest: a stream's last frame, or the whole answer or error."""
        if self._streams:
            await self._send_body(self._frames.last())
            await self._send_body(b"", more=False)
        elif self.status == 200 and self.body != CLIENT_HAS_GONE:
            await send_json(self._send, *whole_reply(self._asked, self.body))
        elif self.status != 200:
            await send_json(self._send, *translated_error(self.status, self.body))

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
            await self._send(response_start(200, "text/event-stream"))
        if data or not more:
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
