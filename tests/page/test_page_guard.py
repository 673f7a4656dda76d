# SPDX-License-Identifier: Apache-2.0
"""`glm41v page` as it is started, asked by others than its own page."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import httpx
import pytest

from tests.page.conftest import Running

FILES = {"files": ("a.png", b"a picture", "image/png")}


def test_its_own_page(running: Running) -> None:
    """Guards the way of an upload, and names that lead to this machine alone."""
    port = urlsplit(running.address).port
    for host in ("127.0.0.1", "localhost"):
        headers = {"Host": f"{host}:{port}", "Origin": f"http://{host}:{port}"}
        upload = f"{running.address}/gradio_api/upload"
        assert httpx.post(upload, files=FILES, headers=headers).status_code == 200
        assert httpx.get(running.address, headers={"Host": headers["Host"]}).status_code == 200


@pytest.mark.parametrize("path", ["", "/gradio_api/upload", "/gradio_api/queue/join", "/config"])
def test_others(running: Running, path: str) -> None:
    """Guards against another page that uses this one, by its own name or by one that leads here."""
    host = urlsplit(running.address).netloc
    url = running.address + path
    for headers in (
        {"Host": "evil.test"},
        {"Host": "evil.test", "Origin": "http://evil.test"},
        {"Host": host, "Origin": "http://evil.test"},
        {"Host": host, "Origin": "null"},
    ):
        assert httpx.post(url, files=FILES, headers=headers).status_code == 403
    assert httpx.get(url, headers={"Host": "evil.test"}).status_code == 403


def test_a_large_body(running: Running) -> None:
    """Guards the limit where no files are uploaded: the questions and settings are texts."""
    url = f"{running.address}/gradio_api/queue/join"
    refused = httpx.post(url, content=bytes(17 << 20), timeout=60)
    assert refused.status_code == 413
    assert "this page takes 16 MiB" in refused.text


def test_urls_are_not_fetched(running: Running) -> None:
    """Guards against files of any size, which gradio would fetch in place of an upload."""
    config = httpx.get(f"{running.address}/config").json()
    kinds = {component["id"]: component["type"] for component in config["components"]}
    file = {"path": "https://192.0.2.1/a.png", "meta": {"_type": "gradio.FileData"}}
    values = {"multimodaltextbox": {"text": "What?", "files": [file]}, "chatbot": [], "textbox": ""}
    functions = [
        (one["id"], [values.get(kinds[id]) for id in one["inputs"]])
        for one in config["dependencies"]
        if "multimodaltextbox" in map(kinds.get, one["inputs"])
    ]
    assert functions
    for number, (function, data) in enumerate(functions):
        session = f"test{number}"
        body = {"data": data, "fn_index": function, "session_hash": session}
        joined = httpx.post(f"{running.address}/gradio_api/queue/join", json=body)
        assert joined.status_code == 200, joined.text
        events = f"{running.address}/gradio_api/queue/data?session_hash={session}"
        with httpx.stream("GET", events, timeout=60) as response:
            lines = [json.loads(line[5:]) for line in response.iter_lines() if line]
        (done,) = (line for line in lines if line["msg"] == "process_completed")
        assert not done["success"]
        assert "This page fetches no URLs" in done["output"]["error"]
