# SPDX-License-Identifier: Apache-2.0
"""What the page says where the server does not answer: what was found, and what to do."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.page.fake_server import MODEL, Fake, Step
from vllm_glm41v_npu.page.server import Server, ServerError


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def address(fake: Fake) -> Iterator[str]:
    with fake.serve() as port:
        yield f"http://127.0.0.1:{port}"


Choices = list[dict[str, Any]]


async def answer(server: Server, body: dict[str, Any]) -> Choices:
    return [choice async for choice in server.stream(body)]


def ask(server: Server) -> Choices:
    """The choices of an answer, after the question for the model's name that the page asks."""

    async def choices() -> Choices:
        return await answer(server, {"model": await server.model_name(), "messages": []})

    return asyncio.run(choices())


def test_answer(fake: Fake, address: str) -> None:
    """Guards the key and the model in the request, and each choice of the stream."""
    fake.steps = [{"reasoning": "So."}, {"content": "2"}, {"choices": [], "usage": {}}]
    choices = ask(Server(address, key="secret"))
    assert [choice["delta"] for choice in choices] == [{"reasoning": "So."}, {"content": "2"}]
    assert fake.headers[0]["Authorization"] == "Bearer secret"
    assert fake.bodies == [{"model": MODEL, "messages": []}]


def test_no_server() -> None:
    """Guards against a traceback where nobody listens."""
    with socket.socket() as taken:  # bound, not listening
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServerError, match=f"No server answers at {address} .*glm41v serve"):
            ask(Server(address))


REFUSALS = {
    "key missing": (401, '{"error": "Unauthorized"}', None, "asks for an API key .*VLLM_API_KEY"),
    "key wrong": (401, '{"error": "Unauthorized"}', "x", "does not accept the API key"),
    "no such route": (404, '{"detail": "Not Found"}', None, "has no /v1/models"),
    "no OpenAI server": (200, "<html>Hello</html>", None, "is no list of models"),
    "another API": (200, "[1]", None, "is no list of models"),
    "no model": (200, '{"data": []}', None, "lists no model"),
    "failure": (500, "oh", None, r"The server failed \(500: oh\). Its log"),
    "moved": (302, "", None, r"refused the request \(302\): Found"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(fake: Fake, address: str, case: str) -> None:
    """Guards the sentence about each kind of server that does not answer."""
    fake.status, fake.body, key, sentence = REFUSALS[case]
    with pytest.raises(ServerError, match=sentence):
        ask(Server(address, key))


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "The picture is too large.", "code": 400}},
        {"message": "The picture is too large."},
        {"detail": "The picture is too large."},
    ],
)
def test_refused_request(fake: Fake, address: str, body: dict[str, Any]) -> None:
    """Guards the server's own sentence, in every form of an error."""
    fake.status, fake.body = 400, json.dumps(body)
    with pytest.raises(ServerError, match=r"\(400\): The picture is too large.$"):
        asyncio.run(answer(Server(address), {}))


def test_other_model(address: str) -> None:
    """Guards against a name that the server would refuse without saying its own."""
    with pytest.raises(ServerError, match=f"has no model 'other', but '{MODEL}'"):
        ask(Server(address, model="other"))


def test_broken_off(fake: Fake, address: str) -> None:
    """Guards against half an answer that looks like a whole one."""
    failure = {"error": {"message": "out of memory"}}
    cases: dict[str, list[Step]] = {
        "broke the connection off .*ask again": [{"content": "H"}, Fake.break_off],
        "The server broke off: out of memory": [failure],
    }
    for sentence, fake.steps in cases.items():
        with pytest.raises(ServerError, match=sentence):
            ask(Server(address))
