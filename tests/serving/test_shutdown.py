# SPDX-License-Identifier: Apache-2.0
"""A server that is told to end, with vLLM's own HTTP server and an engine that is none."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

PROGRAM = """
import asyncio, json, os, signal, socket, sys, threading, time, urllib.request
from types import SimpleNamespace
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from vllm.entrypoints.openai import api_server
from vllm_glm41v_npu.patches import drained_shutdown

patched, timeout = sys.argv[1] == "patched", int(sys.argv[2])
if patched:
    drained_shutdown.apply()
    drained_shutdown.apply()  # every process may load plugins again
order, told = [], []

async def slow(request):
    order.append("begun")
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(1.5)
    order.append("answered")
    return PlainTextResponse("whole")

def shutdown(timeout):
    order.append("engine stopped")
    told.append(timeout)

app = Starlette(routes=[Route("/", slow)])
app.state.engine_client = SimpleNamespace(
    shutdown=shutdown, errored=False, is_running=True,
    vllm_config=SimpleNamespace(shutdown_timeout=timeout))
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
port = listener.getsockname()[1]

def client():
    for _ in range(100):
        try:
            return order.append(urllib.request.urlopen(f"http://127.0.0.1:{port}/").read().decode())
        except ConnectionRefusedError:
            time.sleep(0.1)
        except OSError as error:
            return order.append(type(error).__name__)

async def main():
    thread = threading.Thread(target=client)
    thread.start()
    await (await api_server.serve_http(app, listener, port=port, host="127.0.0.1"))
    await asyncio.to_thread(thread.join)

asyncio.run(main())
print(json.dumps([order, told]))
"""


def ended(state: str, timeout: int) -> tuple[list[str], list[Any]]:
    """What happened, in order, and the time that the engine was given."""
    command = [sys.executable, "-c", PROGRAM, state, str(timeout)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    order, told = json.loads(result.stdout.splitlines()[-1])
    return order, told


def test_vllm_stops_its_engine_under_a_request() -> None:
    """Fails when the patch can go."""
    order, _ = ended("as it is", 20)
    assert order.index("engine stopped") < order.index("answered")


def test_requests_are_answered_first() -> None:
    """Guards a request whose pictures are being read when the server is told to end."""
    order, (left,) = ended("patched", 20)
    assert order.index("answered") < order.index("engine stopped")
    assert "whole" in order
    assert 5 < left < 20


@pytest.mark.parametrize("timeout", [0, 1])
def test_the_grace_time_ends(timeout: int) -> None:
    """Guards against a request that keeps a server from ending, and vLLM's own default of 0."""
    order, (left,) = ended("patched", timeout)
    assert left == 0
    assert order.index("engine stopped") < order.index("answered")
