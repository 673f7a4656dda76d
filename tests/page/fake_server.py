# SPDX-License-Identifier: Apache-2.0
"""A small OpenAI-compatible server that says what a test tells it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "glm41v-fake"
GO_ON_SECONDS = 300

Step = dict[str, Any] | Callable[[], None]


class Fake:
    """What it answers, and what it was asked.

    steps: of the stream: fields of a delta, an event as it is where it has `choices` or `error`,
        or a function to call, such as `wait`.
    status, body: of an error in the place of any answer.
    bodies, headers: of the requests for an answer.
    """

    def __init__(self) -> None:
        self.steps: Iterable[Step] = [{"content": "Hello"}]
        self.status, self.body = 200, ""
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.go_on, self.hung_up = threading.Event(), threading.Event()

    def wait(self) -> None:
        """In a stream: until the test says `go_on`."""
        assert self.go_on.wait(GO_ON_SECONDS)

    @staticmethod
    def breathe() -> None:
        """In a stream: a little while."""
        time.sleep(0.05)

    @staticmethod
    def break_off() -> None:
        """In a stream: end without a word, in the middle of a chunk."""
        raise BrokenPipeError

    @contextmanager
    def serve(self, port: int = 0) -> Iterator[int]:
        """Listen; the port."""
        handler = type("FakeHandler", (_Handler,), {"fake": self})
        with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            try:
                yield server.server_port
            finally:
                self.go_on.set()
                server.shutdown()
                thread.join()


class _Handler(BaseHTTPRequestHandler):
    fake: Fake
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.fake.paths.append(self.path)
        if self._refused():
            return
        self._send(200, json.dumps({"data": [{"id": MODEL}]}))

    def do_POST(self) -> None:
        self.fake.paths.append(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.fake.bodies.append(json.loads(body))
        self.fake.headers.append(dict(self.headers))
        self.close_connection = True
        if self._refused():
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            self._stream()
        except (BrokenPipeError, ConnectionResetError):
            self.fake.hung_up.set()

    def do_CONNECT(self) -> None:
        """As the proxy of everything that would leave this machine."""
        self.fake.paths.append(self.path)
        self._send(502, "no")

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""

    def _refused(self) -> bool:
        if self.fake.status == 200 and not self.fake.body:
            return False
        self._send(self.fake.status, self.fake.body)
        return True

    def _send(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def _stream(self) -> None:
        for step in self.fake.steps:
            if callable(step):
                step()
                continue
            whole = "choices" in step or "error" in step
            self._event(json.dumps(step if whole else {"choices": [{"index": 0, "delta": step}]}))
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
