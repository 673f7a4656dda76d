# SPDX-License-Identifier: Apache-2.0
"""Requests to the page by a foreign name, of another page, or too large: without gradio."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from vllm_glm41v_npu.page.guard import BoundedBodies, Limits, Names, OwnPageOnly

HERE = "127.0.0.1:7860"
LOCAL = Names("127.0.0.1")


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{len(await request.body())}")


def client(*middleware: Middleware) -> TestClient:
    routes = [Route(path, echo, methods=["GET", "POST"]) for path in ("/", "/gradio_api/upload")]
    app = Starlette(routes=routes, middleware=middleware)
    return TestClient(app, base_url=f"http://{HERE}")


def asked(names: Names, host: str, origin: str | None = None) -> Any:
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    return client(Middleware(OwnPageOnly, names=names)).post("/", headers=headers)


@pytest.mark.parametrize(
    ("names", "host", "origin"),
    [
        (LOCAL, HERE, None),
        (LOCAL, HERE, f"http://{HERE}"),
        (LOCAL, "LocalHost:7860", "http://localhost:7860"),
        (LOCAL, "localhost:9000", "http://localhost:9000"),  # an SSH tunnel
        (LOCAL, "[::1]:7860", "http://[::1]:7860"),
        (Names("10.0.0.7"), "10.0.0.7:7860", "http://10.0.0.7:7860"),
        (Names("0.0.0.0"), "10.0.0.7:7860", "http://10.0.0.7:7860"),
        (Names("0.0.0.0"), socket.gethostname(), None),
        (Names("127.0.0.1", {"chat.test"}), "chat.test", "https://chat.test"),
        (Names("127.0.0.1", {"chat.test"}), HERE, "https://chat.test"),
    ],
)
def test_its_own_page(names: Names, host: str, origin: str | None) -> None:
    """Guards the ways in which people open the page."""
    assert asked(names, host, origin).status_code == 200


@pytest.mark.parametrize(
    ("names", "host"),
    [
        (LOCAL, "evil.test"),
        (LOCAL, "evil.test:7860"),
        (LOCAL, "127.0.0.1.evil.test"),
        (LOCAL, "localhost.evil.test:7860"),
        (LOCAL, "evil.test@127.0.0.1.evil.test"),
        (LOCAL, "10.0.0.7:7860"),
        (LOCAL, "[::1"),
        (LOCAL, ""),
        (LOCAL, socket.gethostname()),
        (Names("0.0.0.0"), "evil.test"),
        (Names("127.0.0.1", {"chat.test"}), "evil.chat.test"),
    ],
)
def test_a_foreign_name(names: Names, host: str) -> None:
    """Guards against DNS rebinding: by then the origin is the same as the host."""
    for origin in (None, f"http://{host}"):
        response = asked(names, host, origin)
        assert response.status_code == 403
        assert "not served under the name" in response.text
        assert "--allow-host NAME" in response.text


@pytest.mark.parametrize(
    "origin",
    [
        *(
            "http://evil.test",
            "null",
            "",
            "http://localhost:7861",
            "http://127.0.0.1",
            "http://[::1",
        ),
        *(f"http://{HERE}.evil.test", f"http://evil.test/{HERE}", f"http://evil.test@{HERE}"),
    ],
)
def test_another_page(origin: str) -> None:
    """Guards against a page elsewhere that posts a form to this one."""
    response = asked(LOCAL, HERE, origin)
    assert response.status_code == 403
    assert "answers its own alone" in response.text


def test_a_websocket() -> None:
    guarded = client(Middleware(OwnPageOnly, names=LOCAL))
    with (
        pytest.raises(WebSocketDisconnect) as closed,
        guarded.websocket_connect("/", headers={"Host": "evil.test"}),
    ):
        pass
    assert closed.value.code == 1008


# --- sizes ---


@pytest.fixture
def bounded(tmp_path: Path) -> TestClient:
    limits = Limits(upload=2 << 20, other=1 << 10, kept=4 << 20, files=3)
    return client(Middleware(BoundedBodies, folder=tmp_path, limits=limits))


def test_sizes_of_bodies(bounded: TestClient) -> None:
    """Guards what may be sent, and the sentence about what may not."""
    for path, most in (("/", 1 << 10), ("/gradio_api/upload", 3 << 20)):  # 1 MiB for the form
        assert bounded.post(path, content=bytes(most)).text == str(most)
        refused = bounded.post(path, content=bytes(most + 1))
        assert refused.status_code == 413
        assert "Send a smaller file, or fewer at a time" in refused.text
    assert bounded.get("/").status_code == 200


def test_a_body_of_unknown_size(bounded: TestClient) -> None:
    """Guards against a body without an end, and against one with two lengths."""
    for path in ("/", "/gradio_api/upload"):
        response = bounded.post(path, content=iter([b"a", b"b"]))
        assert response.status_code == 411
        assert "expected Content-Length" in response.text


def test_uploads_that_are_coming(tmp_path: Path) -> None:
    """Guards the disk against uploads side by side, and the page against a count that only grows.

    The first upload is held while the second comes.
    """
    limits = Limits(upload=2 << 20, kept=3 << 20)
    seen: list[int] = []

    async def held(scope: Any, receive: Any, send: Any) -> None:
        if not seen:
            seen.append(await upload(2 << 20))
        await PlainTextResponse("kept")(scope, receive, send)

    bodies = BoundedBodies(held, tmp_path, limits)

    async def upload(size: int) -> int:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-length", b"%d" % size)]
        scope = {"type": "http", "method": "POST", "path": "/upload", "headers": headers}
        await bodies(scope, receive, send)
        return sent[0]["status"]

    assert asyncio.run(upload(2 << 20)) == 200
    assert seen == [413]
    assert [asyncio.run(upload(2 << 20)) for _ in range(3)] == [200] * 3


def test_a_full_folder(bounded: TestClient, tmp_path: Path) -> None:
    """Guards the disk: by bytes and by the number of files, those of folders within it too."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_bytes(bytes(3 << 20))
    assert bounded.post("/gradio_api/upload", content=bytes(1 << 20)).status_code == 200
    full = bounded.post("/gradio_api/upload", content=bytes((1 << 20) + 1))
    assert full.status_code == 413
    assert "keeps 1 uploads of 3 MiB together, and takes 3 and 4 MiB" in full.text
    (tmp_path / "a" / "one").unlink()
    assert bounded.post("/gradio_api/upload", content=bytes(1 << 20)).status_code == 200
    for number in range(3):
        (tmp_path / f"{number}").touch()
    assert bounded.post("/gradio_api/upload", content=b"").status_code == 413
    assert bounded.post("/", content=b"").status_code == 200
