# SPDX-License-Identifier: Apache-2.0
"""The server that the page asks: OpenAI's routes, and sentences for what can go wrong there."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from vllm_glm41v_npu.serving.asgi import CHAT

CONNECT_SECONDS = 5
SILENCE_SECONDS = 600  # before the first token of a long clip on a CPU


class ServerError(Exception):
    """A failure of the server, with what to do about it, for the person at the page."""


@dataclass(frozen=True)
class Server:
    """The server that the page asks.

    address: without /v1, such as http://127.0.0.1:8000.
    key: the API key it wants, or None.
    model: the name in requests; None for the first that the server lists.
    """

    address: str
    key: str | None = None
    model: str | None = None

    async def model_name(self) -> str:
        """Return the name of the model to ask. Raises ServerError."""
        with self._explained():
            async with self._client() as client:
                response = await client.get("/v1/models")
        self._check(response)
        try:
            names = [model["id"] for model in response.json()["data"]]
        except (ValueError, KeyError, TypeError):
            raise ServerError(
                f"{self.address} answers, but /v1/models is no list of models: it is not an "
                "OpenAI-compatible server. Name another address by `glm41v page --server`."
            ) from None
        if self.model and self.model not in names:
            raise ServerError(
                f"The server at {self.address} has no model {self.model!r}, but "
                f"{', '.join(map(repr, names)) or 'none'}. Name another by `--model`."
            )
        if not names:
            raise ServerError(f"The server at {self.address} lists no model. Start it with one.")
        return self.model or names[0]

    async def stream(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Yield the choices of /v1/chat/completions as they come. Raises ServerError."""
        with self._explained():
            async with (
                self._client() as client,
                client.stream("POST", CHAT, json=body) as response,
            ):
                if not response.is_success:
                    await response.aread()
                self._check(response)
                async for line in response.aiter_lines():
                    for choice in self._choices(line):
                        yield choice

    def _client(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        return httpx.AsyncClient(base_url=self.address, headers=headers, timeout=timeout)

    def _choices(self, line: str) -> list[dict[str, Any]]:
        """Return the choices in one line of a stream of events."""
        field, _, data = line.partition(":")
        if field != "data" or data.strip() == "[DONE]":
            return []
        try:
            event = json.loads(data)
        except ValueError:
            raise ServerError(
                f"The server at {self.address} streams what is not JSON: {data.strip()[:200]!r}. "
                "Is it an OpenAI-compatible server?"
            ) from None
        if "error" in event:
            raise ServerError(f"The server broke off: {_message(event)}")
        return event.get("choices") or []

    def _check(self, response: httpx.Response) -> None:
        """Raise ServerError for any status but success."""
        status, said = response.status_code, _said(response)
        if status in (401, 403):
            wants = "does not accept the API key" if self.key else "asks for an API key"
            raise ServerError(
                f"The server at {self.address} {wants} ({status}: {said}). Give its key by "
                "`VLLM_API_KEY=... glm41v page`."
            )
        if status == 404 and response.url.path.endswith("/models"):
            raise ServerError(
                f"{self.address} answers, but has no /v1/models ({status}): it is not an "
                "OpenAI-compatible server. Name another address by `glm41v page --server`."
            )
        if status >= 500:
            raise ServerError(f"The server failed ({status}: {said}). Its log says why.")
        if not response.is_success:
            raise ServerError(f"The server refused the request ({status}): {said}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise ServerError(
                f"No server answers at {self.address} ({error or 'no connection in time'}). Start "
                "one by `glm41v serve MODEL`, or name its address by `glm41v page --server`."
            ) from None
        except httpx.TimeoutException:
            raise ServerError(
                f"The server at {self.address} said nothing for {SILENCE_SECONDS} s. Look whether "
                "it still works, in its log."
            ) from None
        except httpx.TransportError as error:
            raise ServerError(
                f"The server at {self.address} broke the connection off ({error}). Look whether "
                "it still runs, and ask again."
            ) from None


def _said(response: httpx.Response) -> str:
    """Return the message of an error; an empty text for a stream that has begun well."""
    if response.is_success:
        return ""
    try:
        return _message(response.json())
    except ValueError:
        return response.text.strip()[:200] or response.reason_phrase


def _message(body: Any) -> str:
    """Return the sentence in OpenAI's, FastAPI's or any other form of an error."""
    while isinstance(body, dict):
        forms = (body[name] for name in ("error", "message", "detail") if body.get(name))
        inner = next(forms, None)
        if inner is None:
            break
        body = inner
    return body if isinstance(body, str) else json.dumps(body)
