# SPDX-License-Identifier: Apache-2.0
"""The soak: that a leak is found, and that noise is none; against a stand-in for the server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import numpy as np
import psutil
import pytest

from benchmarks import soak
from benchmarks.process_memory import LEAST, Memory, growth, settled
from benchmarks.soak import Clients, new_picture, rows, summary, verdict
from tests.doc_pages import serve_parser

SECONDS = 2.5
MOST = 16.0
LEAK = 1 << 18
SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

leak, kept = int(sys.argv[1]), []

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = json.loads(body)["messages"][0]["content"]
        kept.append(b"x" * leak)
        broken = any(len(part.get("image_url", {}).get("url", "x" * 999)) < 400 for part in parts)
        self.send_response(400 if broken else 200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextmanager
def stand_in(leak: int) -> Iterator[tuple[str, psutil.Process]]:
    """A server that keeps so many bytes of every request: its address and process."""
    command = [sys.executable, "-c", SERVER, str(leak)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
        finally:
            process.kill()


def watched(leak: int) -> tuple[Memory, Clients]:
    with stand_in(leak) as (address, process):
        return asyncio.run(soak.soak(address, process, SECONDS, 4))


def test_a_server_that_is_well() -> None:
    """Guards a verdict of nothing, and the report's rows."""
    memory, clients = watched(0)
    assert verdict(memory, clients, MOST) == []
    assert set(clients.done) <= set(soak.KINDS)
    assert len(memory["server"]) > LEAST
    over_time = rows(memory)
    assert 0 < len(over_time) <= soak.POINTS
    assert all(row.load_unit == "minutes" and row.ours for row in over_time)
    assert {row.what for row in summary(memory, clients)} == {
        "requests",
        "memory after settling",
        "growth after settling",
    }


def test_a_server_that_leaks() -> None:
    """Guards the soak's purpose: a part of each request that is kept is found."""
    memory, clients = watched(LEAK)
    kept = LEAK * clients.done.total() / (1 << 20)  # MiB, two thirds of them after settling
    (wrong,) = verdict(memory, clients, kept / 4)
    assert wrong.startswith("The process server grows: ")


@pytest.mark.parametrize("kind", soak.KINDS)
def test_requests(kind: str) -> None:
    """Guards each kind's body, and a broken picture that is whole."""
    with stand_in(0) as (address, _):
        for number in range(5):
            asked = soak.body(kind, number)
            status = httpx.post(f"{address}/v1/chat/completions", json=asked).status_code
            assert status == (400 if kind == "broken" else 200)


def test_a_server_that_ends() -> None:
    """Guards against a crash in the middle that leaves a short, flat line."""
    with stand_in(0) as (address, process):

        async def stopped() -> tuple[Memory, Clients]:
            asyncio.get_running_loop().call_later(SECONDS / 2, process.kill)
            return await soak.soak(address, process, SECONDS, 2)

        memory, clients = asyncio.run(stopped())
    assert any("did not end as they have to" in wrong for wrong in verdict(memory, clients, MOST))


def good() -> Clients:
    """Clients that found nothing wrong."""
    clients = Clients("http://127.0.0.1:1", 1)
    clients.done = Counter(picture=1)
    return clients


def line(hourly: float, noise: float = 8) -> list[tuple[float, float]]:
    """An hour's memory that first fills up by 500 MiB, and then rises."""
    rng = np.random.default_rng(0)
    seconds = np.linspace(0, 3600, 240)
    filling = 500 * np.minimum(seconds / 900, 1)
    sizes = 700 + filling + hourly * seconds / 3600 + rng.normal(0, noise, len(seconds))
    return list(zip(seconds.tolist(), sizes.tolist(), strict=True))


def test_slopes() -> None:
    """Guards against caches that count as leaks, and leaks that count as noise."""
    assert abs(growth(line(0)).hourly) < 5
    assert growth(line(40)).hourly == pytest.approx(40, abs=5)
    assert verdict({"EngineCore": line(0)}, good(), MOST) == []
    (wrong,) = verdict({"EngineCore": line(40)}, good(), MOST)
    assert "The process EngineCore grows" in wrong
    (wrong,) = verdict({"server": line(0), "Worker": line(0)[:100]}, good(), MOST)
    assert wrong == "The process Worker ended before the others."
    assert settled({"gcc": line(0)[:3]}) == {}
    with pytest.raises(ValueError, match="2 measurements after settling; expected 3"):
        growth([(0, 1), (1, 1), (2, 1)])


def test_pictures_are_new() -> None:
    """Guards against a cache that answers, so that nothing is computed."""
    assert len({new_picture(np.random.default_rng(number)) for number in range(50)}) == 50


def test_the_kv_cache_is_small() -> None:
    """Guards against the variable that comes before --kv-cache-memory-bytes."""
    assert soak.environment({"VLLM_CPU_KVCACHE_SPACE": "4", "A": "b"}) == {"A": "b"}
    serve_parser().parse_args([*soak.NAMED, *soak.parse([]).serve])  # vLLM knows these options
    assert soak.parse(["--seconds", "60", "--", "--dtype", "auto"]).serve == ["--dtype", "auto"]
    with pytest.raises(SystemExit):
        soak.parse(["--seconds", "0"])
