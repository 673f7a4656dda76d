# SPDX-License-Identifier: Apache-2.0
"""`vllm serve` for a test, and media in its requests."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from vllm.utils.network_utils import get_open_port

from tests.lane import ON_CPU

START_SECONDS = 300
MAX_MODEL_LEN = 1024


@contextmanager
def running(model: Path, log: Path, *options: str) -> Iterator[httpx.Client]:
    """A client of a server that is stopped afterwards: eager on a CPU, with graphs on an NPU."""
    port = get_open_port()
    command = [str(Path(sys.executable).parent / "vllm"), "serve", str(model), *options]
    command += ["--port", str(port), "--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", "8"]
    command += ["--enforce-eager"] if ON_CPU else []
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        # vLLM closes the connection after it refused a picture, without saying so.
        headers = {"Connection": "close"}
        address = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=address, timeout=120, headers=headers) as client:
            _wait_until_healthy(client, process, log)
            yield client
    finally:
        process.terminate()
        process.wait(60)


def _wait_until_healthy(client: httpx.Client, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(1)
    pytest.fail(f"The server did not start:\n{log.read_text()[-4000:]}")


def data_uri(data: bytes, kind: str = "png") -> str:
    """A picture in a URL."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def video_uri(data: bytes, kind: str = "mp4") -> str:
    """A video in a URL."""
    return f"data:video/{kind};base64,{base64.b64encode(data).decode()}"
