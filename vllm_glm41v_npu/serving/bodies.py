# SPDX-License-Identifier: Apache-2.0
"""Limits on a request's body: its bytes, and the number of values in its JSON.

Both are counted while the body arrives, so that nothing beyond them is held or parsed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from vllm_glm41v_npu.processing.limits import MAX_FILE_MB, max_file_bytes, mebibytes
from vllm_glm41v_npu.serving.asgi import Message, Receive

MAX_BODY_VARIABLE = "VLLM_GLM41V_NPU_MAX_BODY_MB"
"""The environment variable for the largest body, in MiB."""

TEXT_BYTES = 32 << 20
"""Room beside a medium, for the text of a request."""

MAX_VALUES = 1 << 18
"""The most values of a JSON body: more than the tokens of the longest prompt, one by one."""
MAX_OBJECTS = 1 << 14
"""The most objects of a JSON body: vLLM reports each wrong one, 15 errors each, before all else."""
OBJECTS = (b'{"', b"{}", b"{ ", b"{\n", b"{\r", b"{\t")
"""Beginnings of an object; within a text, a quote is escaped."""

DRAINED = 2 << 30
"""Bytes of a refused body that are read and dropped, before the refusal is sent."""


VALUES_COUNTED = "vllm_glm41v_npu.values_counted"
"""A key of a scope, set by a middleware that counts the values of its JSON: once is enough."""


class ClientGone(Exception):
    """The client left before its body was whole."""


class TooLarge(Exception):
    """A body that is not read to its end; the message says what was found and what to do."""


class TooManyValues(TooLarge):
    """A body of more than MAX_VALUES values or MAX_OBJECTS objects."""


def max_body_bytes() -> int:
    """Return the largest body of any route, in bytes.

    It is the variable's number, or the largest picture or video that may be loaded, in base64
    beside some text.

    Raises:
        ValueError: The variable is no number of 1 or more.
    """
    if os.environ.get(MAX_BODY_VARIABLE):
        return mebibytes(MAX_BODY_VARIABLE, 1)
    return max(map(max_file_bytes, MAX_FILE_MB)) * 4 // 3 + TEXT_BYTES


async def read_body(scope: Message, receive: Receive, most: int) -> bytes:
    """Return a JSON request's body of at most `most` bytes.

    Raises:
        TooLarge: It has more bytes, or too many values; the rest was read and dropped.
        ClientGone: The client left before its body was whole.
    """
    data, more = bytearray(), True
    try:
        count = BodyCount(scope["headers"], most, is_json=not scope.get(VALUES_COUNTED))
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            more = message.get("more_body", False)
            count.add(message.get("body", b""))
            data += message.get("body", b"")
    except TooLarge:
        data.clear()
        if more:
            await drain(receive)
        raise
    return bytes(data)


async def drain(receive: Receive) -> None:
    """Read the rest of a body and hold none of it.

    A client that is still sending may not read an answer, and finds the connection closed instead.
    """
    dropped, more = 0, True
    while more and dropped < DRAINED:
        message = await receive()
        dropped += len(message.get("body", b""))
        more = message["type"] == "http.request" and message.get("more_body", False)


class BodyCount:
    """Counts one body as it arrives.

    Args:
        headers: The request's, in ASGI's form (names in small letters).
        most: The largest body, in bytes.
        is_json: It is read as JSON; told from the content type if not given.

    Raises:
        TooLarge: The headers announce more.
    """

    def __init__(
        self, headers: Iterable[tuple[bytes, bytes]], most: int, is_json: bool | None = None
    ) -> None:
        found = {name.lower(): value for name, value in headers}
        self._most = most
        self._bytes = self._values = self._objects = 0
        if is_json is None:  # a file's bytes are none
            kind = found.get(b"content-type", b"").strip().lower()
            is_json = not kind.startswith(b"multipart")
        self.is_json = is_json
        announced = found.get(b"content-length", b"0")
        if announced.isdigit() and int(announced[:20]) > most:
            raise TooLarge(self._size_message())

    def add(self, data: bytes) -> None:
        """Count the next part of the body.

        Raises:
            TooLarge: It is too much, with all before.
        """
        self._bytes += len(data)
        if self._bytes > self._most:
            raise TooLarge(self._size_message())
        if self.is_json:  # commas and brackets of texts count too: no prompt has so many
            braces = data.count(b"{")
            self._values += data.count(b",") + braces + data.count(b"[")
            if braces:
                self._objects += sum(map(data.count, OBJECTS))
            if self._values > MAX_VALUES or self._objects > MAX_OBJECTS:
                raise TooManyValues(
                    f"The body of the request has more than {MAX_VALUES} values or {MAX_OBJECTS} "
                    "objects (its commas and opening brackets are counted). Send less in one "
                    "request."
                )

    def _size_message(self) -> str:
        return (
            f"The body of the request is larger than {self._most >> 20} MiB. Send smaller pictures "
            f"and videos, or their URLs; the operator can raise {MAX_BODY_VARIABLE}."
        )
