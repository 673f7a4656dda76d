# SPDX-License-Identifier: Apache-2.0
"""Media by URL: only from where the operator allows, only in bearable sizes, never a hang."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from vllm.multimodal.media import ImageMediaIO

from tests.clips import Clip
from tests.processing.loading import load, png
from tests.processing.web import MEBIBYTE, Host
from vllm_glm41v_npu.processing import encoded_video, fetching, sent_frames
from vllm_glm41v_npu.processing.media_io import EncodedVideoIO
from vllm_glm41v_npu.processing.multimodal import Glm41vMultiModalProcessor
from vllm_glm41v_npu.processing.refusals import MediaRefused


@pytest.fixture(autouse=True)
def one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "1")
    Host.asked.clear()


# --- hosts ---


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


@pytest.mark.parametrize("url", ["ftp://example.com/a.png", "picture.png"])
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
    fetching.check_size(MEBIBYTE, MEBIBYTE)  # the largest one
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


def test_many_frames_sent_one_by_one(
    processor: Glm41vMultiModalProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small as files, and large once they are decoded."""
    frames = ",".join([base64.b64encode(png((1000, 1000))).decode()] * 3)
    monkeypatch.setattr(sent_frames, "MAX_PIXELS", 2_500_000)
    loader = EncodedVideoIO(ImageMediaIO(), processor.info.prefetch)
    with pytest.raises(ValueError, match="over 2,500,000 pixels together"):
        loader.load_base64("video/jpeg", frames)
    with pytest.raises(ValueError, match="Frame 1 of 2 is not a picture"):
        loader.load_base64("video/jpeg", "aaaa,bbbb")
