# SPDX-License-Identifier: Apache-2.0
"""Clients of a server that ask together, and check what they are told."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Any, NamedTuple

import httpx

from tests.end_to_end.unfinished import CHAT, Unfinished

PIECES_BEFORE_LEAVING = 3
SLOW_SECONDS = 0.02
SMALL_BUFFER = (socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
"""So that a server soon waits for a client that reads slowly."""


class AnswerFailed(Exception):
    """The server said so in the middle of a stream."""


class Job(NamedTuple):
    """A request, and what its client does.

    expected: the answer; None where the request has to be refused.
    client: "whole", "stream", "slow" (a stream read with pauses), "leaves" (in its middle), or
        "hangs up" (after so many `seconds`, wherever the request is).
    before: what the client asks first, with the same pictures.
    """

    body: dict[str, Any]
    expected: str | None
    client: str = "whole"
    before: Unfinished | None = None
    seconds: float = 0


async def complaints(address: str, jobs: Sequence[Job], at_once: int) -> list[str]:
    """What was wrong with the answers to `jobs`, of which `at_once` are asked at any time."""
    found: list[str] = []
    waiting = iter(jobs)

    async def work(client: httpx.AsyncClient) -> None:
        for job in waiting:
            found.extend(await _complaint_before(client, job))
            found.extend(await _complaint(client, job))

    transport = httpx.AsyncHTTPTransport(socket_options=[SMALL_BUFFER])
    # After some refusals vLLM closes the connection, without saying so.
    headers = {"Connection": "close"}
    async with httpx.AsyncClient(
        base_url=address, transport=transport, timeout=120, headers=headers
    ) as client:
        await asyncio.gather(*(work(client) for _ in range(at_once)))
    return found


async def _complaint_before(client: httpx.AsyncClient, job: Job) -> list[str]:
    if job.before is None:
        return []
    path, body, status = job.before
    response = await client.post(path, json=body)
    if response.status_code == status:
        return []
    return [f"{path}: {response.status_code}, expected {status}: {response.text:.200}"]


async def _complaint(client: httpx.AsyncClient, job: Job) -> list[str]:
    if job.client == "hangs up":
        with suppress(TimeoutError):
            await asyncio.wait_for(client.post(CHAT, json=job.body), job.seconds)
        return []
    if job.expected is None:
        response = await client.post(CHAT, json=job.body)
        refused = 400 <= response.status_code < 500
        return [] if refused else [f"bad, and {response.status_code}: {response.text:.200}"]
    if job.client == "whole":
        response = await client.post(CHAT, json=job.body)
        if response.status_code != 200:
            return [f"good, and {response.status_code}: {response.text:.200}"]
        told = response.json()["choices"][0]["message"]["content"]
        return _differences(job, told)
    told = ""
    async with aclosing(pieces(client, job.body)) as stream:
        count = 0
        async for piece in stream:
            told += piece
            count += 1
            if job.client == "slow":
                await asyncio.sleep(SLOW_SECONDS)
            if job.client == "leaves" and count == PIECES_BEFORE_LEAVING:
                return [] if job.expected.startswith(told) else [f"left, and was told {told!r}"]
    return _differences(job, told)


def _differences(job: Job, told: str) -> list[str]:
    return [] if told == job.expected else [f"{job.client}: {told!r}, expected {job.expected!r}"]


async def pieces(client: httpx.AsyncClient, body: dict[str, Any]) -> AsyncGenerator[str]:
    """The content of a streamed answer, as it comes.

    Raises HTTPStatusError or AnswerFailed where the server says that it failed.
    """
    async with client.stream("POST", CHAT, json=body | {"stream": True}) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            event = json.loads(line[6:]) if line.startswith("data: {") else {"choices": []}
            if "error" in event:
                raise AnswerFailed(event["error"])
            for choice in event["choices"]:
                yield choice["delta"].get("content") or ""
