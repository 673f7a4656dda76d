# SPDX-License-Identifier: Apache-2.0
"""A server that is told to end, with vLLM's own HTTP server and an engine that is none."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, NamedTuple

import pytest

PROGRAM = """
import asyncio, json, os, signal, socket, threading, time, urllib.request
from types import SimpleNamespace
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from vllm.entrypoints.openai import api_server
from vllm_glm41v_npu.patches import drained_shutdown

ours = SimpleNamespace(hf_config=SimpleNamespace(model_type="glm4v"))

async def serve(timeout):
    order, told = [], []

    async def slow(request):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(1.5)
        order.append("answered")
        return PlainTextResponse("whole")

    def shutdown(timeout):
        order.append("engine stopped")
        told.append(timeout)

    def ask():
        while not getattr(getattr(app.state, "server", None), "started", False):
            time.sleep(0.1)
        try:
            order.append(urllib.request.urlopen(f"http://127.0.0.1:{port}/").read().decode())
        except OSError as error:
            order.append(type(error).__name__)

    app = Starlette(routes=[Route("/", slow)])
    app.state.engine_client = SimpleNamespace(
        shutdown=shutdown, errored=False, is_running=True,
        vllm_config=SimpleNamespace(shutdown_timeout=timeout, model_config=ours))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    client = threading.Thread(target=ask)
    client.start()
    await (await api_server.serve_http(app, listener, port=port, host="127.0.0.1"))
    await asyncio.to_thread(client.join)
    return order, told

ends = {"as it is": asyncio.run(serve(20))}
for _ in range(2):  # a process may load plugins again
    drained_shutdown.apply()
ends |= {f"patched, {seconds}": asyncio.run(serve(seconds)) for seconds in (20, 1, 0)}
print(json.dumps(ends))
"""


class End(NamedTuple):
    """What happened, in order, and which times the engine was given to end."""

    order: list[str]
    times: list[float]

    @property
    def engine_first(self) -> bool:
        return self.order.index("engine stopped") < self.order.index("answered")


@pytest.fixture(scope="module")
def ends() -> dict[str, End]:
    """Of a server as it is, and patched with grace times of so many seconds.

    In another process: it sends itself the signal.
    """
    command = [sys.executable, "-c", PROGRAM]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return {name: End(*end) for name, end in found.items()}


def test_vllm_stops_its_engine_under_a_request(ends: dict[str, End]) -> None:
    """Fails when the patch can go."""
    assert ends["as it is"].engine_first


def test_requests_are_answered_first(ends: dict[str, End]) -> None:
    """Guards a request whose pictures are being read when the server is told to end."""
    end = ends["patched, 20"]
    assert not end.engine_first
    assert "whole" in end.order
    (left,) = end.times
    assert 5 < left < 20


@pytest.mark.parametrize("seconds", [0, 1])
def test_the_grace_time_ends(ends: dict[str, End], seconds: int) -> None:
    """Guards against a request that keeps a server from ending, and vLLM's own default of 0."""
    end = ends[f"patched, {seconds}"]
    assert end.engine_first
    assert end.times == [0]
