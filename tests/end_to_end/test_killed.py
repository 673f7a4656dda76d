# SPDX-License-Identifier: Apache-2.0
"""A server of which a process is killed while it answers: its clients hear of it, and it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.end_to_end.bad_media import QUESTION, printed
from tests.end_to_end.load import AnswerFailed, pieces
from tests.end_to_end.servers import STOP_SECONDS, Server, request, serving

CLIENTS, SILENCE = 16, 120
"""After so many seconds of silence a client gives up, with ReadTimeout."""

CLOSED = {"RemoteProtocolError", "ReadError", "ConnectError"}
SAID = {"AnswerFailed", "HTTPStatusError"}
LONG = request(QUESTION, printed()) | {"max_tokens": 900, "ignore_eos": True}


async def killed_while_streaming(server: Server, victim: psutil.Process) -> set[str]:
    """What the clients hear when `victim` is killed while some are read to and others wait."""
    begun = asyncio.Event()

    async def listen(client: httpx.AsyncClient) -> str:
        try:
            async for piece in pieces(client, LONG):
                if piece:
                    begun.set()
        except (httpx.HTTPError, AnswerFailed) as error:
            return type(error).__name__
        return "a whole answer"

    async with httpx.AsyncClient(base_url=server.address, timeout=SILENCE) as client:
        listeners = [asyncio.create_task(listen(client)) for _ in range(CLIENTS)]
        await asyncio.wait_for(begun.wait(), SILENCE)
        victim.kill()
        return set(await asyncio.gather(*listeners))


@pytest.fixture(scope="module")
def model(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("tiny")


@pytest.fixture(scope="module")
def killed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, set[str]]:
    """The port of a server that was killed, and what its clients heard."""
    log = tmp_path_factory.mktemp("killed") / "log"
    with serving(model, log, "--served-model-name", "tiny") as server:
        return server.port, asyncio.run(killed_while_streaming(server, server.process))


@pytest.fixture(scope="module")
def restarted(
    model: Path, killed: tuple[int, set[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Another server at the port of the killed one."""
    log = tmp_path_factory.mktemp("restarted") / "log"
    with serving(model, log, "--served-model-name", "tiny", port=killed[0]) as server:
        yield server


def test_clients_of_a_killed_server_hear_of_it(killed: tuple[int, set[str]]) -> None:
    """Guards against clients that wait for an answer that never comes."""
    assert killed[1] <= CLOSED


def test_a_restarted_server_answers(restarted: Server) -> None:
    """Guards the port, and what a killed server may leave."""
    with restarted.client() as client:
        body = request(QUESTION, printed()) | {"max_tokens": 64}
        answer = client.post("/v1/chat/completions", json=body).json()
    assert "<answer>6021</answer>" in answer["choices"][0]["message"]["content"]


def test_without_its_engine_a_server_says_so_and_ends(restarted: Server) -> None:
    """Guards against a server that takes requests and can answer none."""
    engine = next(child for child in restarted.processes() if "EngineCore" in child.name())
    assert asyncio.run(killed_while_streaming(restarted, engine)) <= {*CLOSED, *SAID}
    restarted.process.wait(STOP_SECONDS)
    assert "EngineDeadError" in restarted.log.read_text()
