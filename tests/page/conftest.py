# SPDX-License-Identifier: Apache-2.0
"""The page as it is started, in a headless Chromium, and a server that a test commands."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.page.fake_server import Fake

if TYPE_CHECKING:
    from playwright.sync_api import Browser

START_SECONDS = 120

# The CPU's environment has neither; `make test-page` runs all.
HERE_TOO = all(find_spec(name) for name in ("gradio", "playwright"))
collect_ignore_glob = [] if HERE_TOO else ["test_browser.py", "test_page_*.py"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)


class Running(NamedTuple):
    """The page's address, the port where it expects the server, and what it would ask outside."""

    address: str
    server_port: int
    outside: Fake


@pytest.fixture(scope="module")  # while it is there, this thread runs playwright's event loop
def chromium() -> Iterator[Browser]:
    """A headless one."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Without a sandbox as root, which Chromium refuses otherwise, and in containers.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`glm41v page`, on a machine whose way outside leads by a proxy that notes who is asked."""
    port, server_port = _free_port(), _free_port()
    outside = Fake()
    folder = tmp_path_factory.mktemp("page")
    log, uploads = folder / "log", folder / "uploads"
    uploads.mkdir()
    command = [str(Path(sys.executable).parent / "glm41v"), "page", "--port", str(port)]
    command += ["--server", f"http://127.0.0.1:{server_port}/v1"]
    with outside.serve() as proxy_port, log.open("w") as output:
        names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
        environment = os.environ | dict.fromkeys(names, f"http://127.0.0.1:{proxy_port}")
        environment |= {"VLLM_API_KEY": "secret", "TMPDIR": str(uploads)}
        for name in ("no_proxy", "NO_PROXY"):
            environment.pop(name, None)
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            _wait_until_open(port, process, log)
            yield Running(f"http://127.0.0.1:{port}", server_port, outside)
        finally:
            process.terminate()
            process.wait(60)
    assert [*uploads.iterdir()] == []  # what people have shown is not kept


@pytest.fixture
def fake(running: Running) -> Iterator[Fake]:
    """The server that the page asks."""
    server = Fake()
    with server.serve(running.server_port):
        yield server


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _wait_until_open(port: int, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    pytest.fail(f"The page did not start:\n{log.read_text()[-4000:]}")
