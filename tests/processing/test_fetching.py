# SPDX-License-Identifier: Apache-2.0
"""Media by URL: only from where the operator allows, only in bearable sizes, never a hang."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.clips import Clip
from tests.processing.loading import load, png
from vllm_glm41v_npu.processing import encoded_video, fetching, media, sent_frames
from vllm_glm41v_npu.processing.fetching import MediaRefused, is_public

MEBIBYTE = 1 << 20


class Host(BaseHTTPRequestHandler):
    """Answers by path: /picture, /missing, /endless, /to/URL (a redirect), /circle."""

    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/to/"):
            return self.answer(302, Location=self.path.removeprefix("/to/"))
        if self.path == "/circle":
            return self.answer(301, Location="/circle")
        if self.path == "/endless":
            return self.endless()
        self.answer(200 if self.path == "/picture" else 404, png())

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


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


@pytest.fixture(autouse=True)
def one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "1")
    Host.asked.clear()


# --- addresses ---


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "0.0.0.0"),
        *("100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fd00::1"),
        *("::ffff:127.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]"]
)
def test_the_machine_itself_is_not_asked(port: int, host: str) -> None:
    """In any spelling that a resolver understands."""
    with pytest.raises(MediaRefused, match="no public address|not fetched"):
        load(f"http://{host}:{port}/picture")
    assert not Host.asked


def test_a_host_that_the_operator_allows(port: int) -> None:
    assert load(f"http://127.0.0.1:{port}/picture", "127.0.0.1").size == (8, 8)


def test_a_host_that_the_operator_does_not_allow(port: int) -> None:
    with pytest.raises(MediaRefused, match="none of those.*--allowed-media-domains"):
        load(f"http://127.0.0.1:{port}/picture", "example.com")
    with pytest.raises(MediaRefused, match="none of those"):
        load(f"http://example.com@127.0.0.1:{port}/picture", "example.com")
    assert not Host.asked


def test_redirects_stay_within_the_allowed_hosts(port: int) -> None:
    there = f"http://127.0.0.1:{port}"
    assert load(f"{there}/to//picture", "127.0.0.1").size == (8, 8)
    with pytest.raises(MediaRefused, match="The host localhost is none of those"):
        load(f"{there}/to/http://localhost:{port}/picture", "127.0.0.1")
    assert "/picture" in Host.asked
    with pytest.raises(MediaRefused, match="of the kind 'file'"):
        load(f"{there}/to/file:///etc/passwd", "127.0.0.1")
    with pytest.raises(MediaRefused, match="over 5 redirects"):
        load(f"{there}/circle", "127.0.0.1")


def test_a_public_host_cannot_lead_to_a_private_one(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by a redirect to an address nor to a name; 127.0.0.1 plays the internet here."""
    here = "127.0.0.1"

    async def resolve(self: Any, host: str, *args: Any, **options: Any) -> list[Any]:
        address = {"public.test": here, "inside.test": "127.0.0.2"}[host]
        entry = {"hostname": host, "host": address, "port": port}
        return [entry | {"family": 2, "proto": 0, "flags": 0}]

    monkeypatch.setattr("aiohttp.ThreadedResolver.resolve", resolve)
    monkeypatch.setattr(fetching, "is_public", lambda address: str(ip_address(address)) == here)
    there = f"http://public.test:{port}"
    assert load(f"{there}/to//picture").size == (8, 8)
    for inside in ("inside.test", "127.0.0.2"):
        Host.asked.clear()
        with pytest.raises(MediaRefused, match=f"The host {inside} has no public address"):
            load(f"{there}/to/http://{inside}:{port}/picture")
        assert set(Host.asked) == {f"/to/http://{inside}:{port}/picture"}


def test_redirects_can_be_turned_off(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "0")
    with pytest.raises(MediaRefused, match="VLLM_MEDIA_URL_ALLOW_REDIRECTS"):
        load(f"http://127.0.0.1:{port}/to//picture", "127.0.0.1")


@pytest.mark.parametrize("kind", ["missing", "closed", "unknown"])
def test_a_failed_fetch_is_the_callers_error(port: int, kind: str) -> None:
    """vLLM 0.23.0 answers these with 500. No address and no path is told."""
    url, reason = {
        "missing": (f"http://127.0.0.1:{port}/secret", "it answered 404"),
        "closed": ("http://127.0.0.1:1/secret", "the connection failed"),
        "unknown": ("http://nobody.invalid/secret", "the connection failed"),
    }[kind]
    with pytest.raises(MediaRefused, match=reason) as refused:
        load(url, "127.0.0.1", "nobody.invalid")
    assert "secret" not in str(refused.value)


def test_a_failed_fetch_is_tried_again(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    async def fail_once(url: str, *args: Any) -> bytes:
        tries.append(url)
        if len(tries) == 1:
            raise ConnectionResetError
        return b"data"

    monkeypatch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "2")
    monkeypatch.setattr(fetching, "_follow", fail_once)
    assert fetching.fetch("http://example.com/a", (), 1, 1) == b"data"
    assert len(tries) == 2


@pytest.mark.parametrize("url", ["ftp://example.com/a.png", "picture.png", "http://", "http:///a"])
def test_other_urls(url: str) -> None:
    with pytest.raises(MediaRefused, match="expected http, https, data or file"):
        load(url)


# --- sizes ---


def test_large_files_are_not_read_to_the_end(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_GLM41V_NPU_MAX_IMAGE_MB", "2")
    with pytest.raises(MediaRefused, match="larger than 2 MiB"):
        load(f"http://127.0.0.1:{port}/endless", "127.0.0.1")


def test_large_files_of_other_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_GLM41V_NPU_MAX_IMAGE_MB", "1")
    data = bytes(MEBIBYTE + 3)
    (tmp_path / "large").write_bytes(data)
    with pytest.raises(MediaRefused, match="larger than 1 MiB"):
        load((tmp_path / "large").as_uri(), folder=str(tmp_path))
    with pytest.raises(MediaRefused, match="larger than 1 MiB"):
        load("data:image/png;base64," + base64.b64encode(data).decode())


def test_a_limit_that_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_GLM41V_NPU_MAX_IMAGE_MB", "much")
    with pytest.raises(ValueError, match="VLLM_GLM41V_NPU_MAX_IMAGE_MB is 'much'"):
        load("data:image/png;base64,")


@pytest.mark.parametrize("backend", encoded_video.BACKENDS)
def test_frames_of_many_pixels(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = Clip(10, 4).encode()
    monkeypatch.setattr(encoded_video, "MAX_FRAME_PIXELS", 100)
    with pytest.raises(ValueError, match="over 100 pixels a frame"):
        _ = encoded_video.EncodedVideo(clip, {"backend": backend}).timeline


def test_many_frames_sent_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small as files, and large once they are decoded."""
    frames = ",".join([base64.b64encode(png((1000, 1000))).decode()] * 3)
    monkeypatch.setattr(sent_frames, "MAX_PIXELS", 2_500_000)
    loader = media.EncodedVideoIO(media.ImageMediaIO(), None)
    with pytest.raises(ValueError, match="over 2,500,000 pixels together"):
        loader.load_base64("video/jpeg", frames)
    with pytest.raises(ValueError, match="Frame 1 of 2 is not a picture"):
        loader.load_base64("video/jpeg", "aaaa,bbbb")
