# SPDX-License-Identifier: Apache-2.0
"""`vllm serve` for a test, and media in its requests."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
from vllm.utils.network_utils import get_open_port

from tests.checkpoints import TINY
from tests.lane import ON_CPU
from vllm_glm41v_npu.processing.media_files import data_url

PICTURES, VIDEOS = TINY.parent / "pictures", TINY.parent / "videos"
NO_SPACES = '{"backend": "xgrammar", "disable_any_whitespace": true}'
"""For --structured-outputs-config: left free, the tiny model writes spaces without end in JSON."""

NUMBER_SCHEMA = {
    "type": "object",
    "properties": {"number": {"type": "string", "pattern": "^[0-9]{4}$"}},
    "required": ["number"],
    "additionalProperties": False,
}

THINKING_OFF: list[dict[str, Any]] = [
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"thinking": {"type": "disabled"}},
    {"reasoning_effort": "none"},
]
"""Fields of a request that switch its thinking off, each by itself."""

START_SECONDS, STOP_SECONDS = 600, 60
MAX_MODEL_LEN = 1024


class Server(NamedTuple):
    """A running `vllm serve`, what it writes, and where it answers."""

    process: psutil.Popen
    log: Path
    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> httpx.Client:
        # After some refusals vLLM closes the connection, without saying so.
        return httpx.Client(base_url=self.address, timeout=120, headers={"Connection": "close"})

    def processes(self) -> list[psutil.Process]:
        """All of the server's: those that answer, and that compute."""
        return [self.process, *self.process.children(recursive=True)]


@contextmanager
def serving(
    model: Path,
    log: Path,
    *options: str,
    port: int | None = None,
    variables: Mapping[str, str] = os.environ,
) -> Iterator[Server]:
    """A server that is stopped afterwards: eager on a CPU, with graphs on an NPU.

    None of its processes may outlive it.
    """
    port = port or get_open_port()
    command = [str(Path(sys.executable).parent / "vllm"), "serve", str(model), *options]
    command += ["--port", str(port), "--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", "8"]
    command += ["--enforce-eager"] if ON_CPU else []
    environment = {**variables, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("a") as output:
        process = psutil.Popen(command, stdout=output, stderr=output, env=environment)
    server = Server(process, log, port)
    processes = [process]
    try:
        _wait_until_healthy(server)
        processes = server.processes()
        yield server
    finally:
        if process.poll() is None:
            processes = [*{*processes, *server.processes()}]
            process.terminate()
        left = left_behind(processes)
        for orphan in left:
            orphan.kill()
        process.wait()
        assert not left, f"left behind: {left}\n{log.read_text()[-4000:]}"


@contextmanager
def running(model: Path, log: Path, *options: str) -> Iterator[httpx.Client]:
    """A client of a server that is stopped afterwards."""
    with serving(model, log, *options) as server, server.client() as client:
        yield client


def _wait_until_healthy(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if httpx.get(f"{server.address}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(1)
    pytest.fail(f"The server did not start:\n{server.log.read_text()[-4000:]}")


def left_behind(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run after STOP_SECONDS."""
    deadline = time.monotonic() + STOP_SECONDS
    while left := [process for process in processes if _runs(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # one that no parent has asked about
    except psutil.NoSuchProcess:
        return False


def data_uri(data: bytes, kind: str = "png") -> str:
    """A picture in a URL."""
    return data_url(data, f"image/{kind}")


def video_uri(data: bytes, kind: str = "mp4") -> str:
    """A video in a URL."""
    return data_url(data, f"video/{kind}")


def part(url: str) -> dict[str, Any]:
    """A picture or a video in a chat; files are videos."""
    is_video = url.startswith(("data:video", "file:"))
    kind = "video_url" if is_video else "image_url"
    return {"type": kind, kind: {"url": url}}


def request(text: str, *urls: str) -> dict[str, Any]:
    """A chat's body: what the URLs name, and then the text."""
    content = [*map(part, urls), {"type": "text", "text": text}]
    return {"model": "tiny", "temperature": 0, "messages": [{"role": "user", "content": content}]}
