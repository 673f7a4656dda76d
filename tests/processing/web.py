# SPDX-License-Identifier: Apache-2.0
"""A web server on this machine, which tests fetch from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar

from tests.processing.loading import png

MEBIBYTE = 1 << 20


class Host(BaseHTTPRequestHandler):
    """Answers by path: /picture, /missing, /endless, /to/URL (a redirect), /circle.

    As a proxy it answers every request with a picture.
    """

    asked: ClassVar[list[str]] = []
    headers_seen: ClassVar[list[dict[str, str]]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.headers_seen.append(dict(self.headers))
        if self.path.startswith("/to/"):
            return self.answer(302, Location=self.path.removeprefix("/to/"))
        if self.path == "/circle":
            return self.answer(301, Location="/circle")
        if self.path == "/endless":
            return self.endless()
        self.answer(200 if self.path == "/picture" or "://" in self.path else 404, png())

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def endless(self) -> None:
        """A megabyte at a time, without saying how many, until the client has enough."""
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(1000):
                self.wfile.write(bytes(MEBIBYTE))
        except ConnectionError:
            return

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serve(address: str = "127.0.0.1") -> Iterator[int]:
    """The port at which a Host answers."""
    server = ThreadingHTTPServer((address, 0), Host)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
