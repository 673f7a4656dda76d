# SPDX-License-Identifier: Apache-2.0
"""Hosts that send nonsense, too much, or nothing for long: each is one sentence to the caller."""

from __future__ import annotations

import asyncio
import gzip
import resource
import time
from collections.abc import Iterator
from contextlib import suppress
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread

import pytest

from vllm_glm41v_npu.processing.fetching import fetch_async
from vllm_glm41v_npu.processing.refusals import MediaRefused

MEBIBYTE = 1 << 20
OK = b"HTTP/1.1 200 OK\r\n"
BOMB = gzip.compress(bytes(256 * MEBIBYTE), compresslevel=1)

ANSWERS = {
    "nothing": b"",
    "no HTTP": b"\x00\xff" * 500,
    "early hints without end": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 20_000,
    "a header without end": OK + b"X-A: " + b"y" * 4 * MEBIBYTE,
    "many headers": OK
    + b"Content-Length: 100\r\n"
    + b"".join(b"X-%d: y\r\n" % n for n in range(100_000))
    + b"\r\n",
    "a negative length": OK + b"Content-Length: -5\r\n\r\nabc",
    "two lengths": OK + b"Content-Length: 1\r\nContent-Length: 3\r\n\r\nabc",
    "a length without end": OK + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n",
    "less than it says": OK + b"Content-Length: 100\r\n\r\nabc",
    "broken chunks": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "broken gzip": OK + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
    "a redirect to no URL": b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\n\r\n",
    "a redirect to no port": b"HTTP/1.1 302 Found\r\nLocation: http://a:99999/\r\n\r\n",
    "a redirect to no name": b"HTTP/1.1 302 Found\r\nLocation: http://a..b/\r\n\r\n",
    "a redirect to bytes": b"HTTP/1.1 302 Found\r\nLocation: http://\xff\xfe/\r\n\r\n",
    "a redirect to a script": b"HTTP/1.1 302 Found\r\nLocation: javascript:alert(1)\r\n\r\n",
    "a compressed bomb": OK
    + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB)
    + BOMB,
}


class Handler(StreamRequestHandler):
    """Sends an answer by its number in the path; /slow sends a byte now and then."""

    def handle(self) -> None:
        path = self.rfile.readline().split()[1].decode()
        with suppress(OSError):
            if path != "/slow":
                self.wfile.write([*ANSWERS.values()][int(path[1:])])
                return
            self.wfile.write(OK + b"Content-Length: 1000\r\n\r\n")
            for _ in range(200):
                self.wfile.write(b"x")
                time.sleep(0.05)


@pytest.fixture(scope="module")
def hostile() -> Iterator[str]:
    ThreadingTCPServer.daemon_threads = True
    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def fetched(url: str, timeout: float) -> bytes:
    allowed = ("127.0.0.1", "a", "a..b")
    return asyncio.run(fetch_async(url, allowed, MEBIBYTE, timeout))


@pytest.mark.parametrize("answer", ANSWERS)
def test_nonsense(hostile: str, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against another exception, which vLLM would answer with 500, and against waiting."""
    monkeypatch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "1")
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MediaRefused) as refused:
        fetched(f"{hostile}/{[*ANSWERS].index(answer)}", 5)
    assert str(refused.value).endswith(".")
    assert time.monotonic() - begin < 15
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 128 << 10  # KiB


def test_a_slow_host(hostile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the time limit, which is of the whole download and not of a pause in it."""
    monkeypatch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "1")
    begin = time.monotonic()
    with pytest.raises(MediaRefused, match="it took too long"):
        fetched(f"{hostile}/slow", 0.5)
    assert time.monotonic() - begin < 5


def test_a_slow_host_is_asked_again(hostile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the documented time of all tries: four times that of the one before."""
    monkeypatch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "2")
    begin = time.monotonic()
    with pytest.raises(MediaRefused, match="it took too long"):
        fetched(f"{hostile}/slow", 0.2)
    assert 0.2 + 1 + 0.8 <= time.monotonic() - begin < 10  # with a pause of 1 s between
