# SPDX-License-Identifier: Apache-2.0
"""The pictures of one request, loaded side by side: within one budget, and ended together."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from vllm.entrypoints.chat_utils import AsyncMultiModalItemTracker
from vllm.exceptions import VLLMValidationError
from vllm.renderers.base import BaseRenderer

from tests.processing.loading import png
from vllm_glm41v_npu.patches import empty_media, media_request
from vllm_glm41v_npu.processing import budget, connector
from vllm_glm41v_npu.processing.budget import Budget
from vllm_glm41v_npu.processing.connector import Glm41vMediaConnector

MEBIBYTE = 1 << 20
LARGE = "data:image/png;base64," + base64.b64encode(png((1000, 1000))).decode()
"""4 MB once it is decoded."""


@pytest.fixture
def small_budget(monkeypatch: pytest.MonkeyPatch) -> Budget:
    """30 MiB for all, 15 MiB for a request."""
    small = Budget(30 * MEBIBYTE, 15 * MEBIBYTE)
    monkeypatch.setattr(connector, "process_budget", lambda: small)
    monkeypatch.setattr(budget, "process_budget", lambda: small)
    return small


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sizes of the pictures that are decoded."""
    decoded = []
    load = Image.Image.load

    def counting(picture: Image.Image) -> Any:
        if picture.width >= 1000:
            decoded.append(picture.width)
        return load(picture)

    monkeypatch.setattr(Image.Image, "load", counting)
    yield decoded


def assert_given_back(small_budget: Budget) -> None:
    """All memory, once the threads have ended that decode for nobody."""
    deadline = time.monotonic() + 5
    while small_budget.used and time.monotonic() < deadline:
        time.sleep(0.01)
    assert small_budget.used == 0


async def load_all(urls: list[str], connector: Glm41vMediaConnector) -> list[Any]:
    """As vLLM does it, in the request that is open."""
    return await asyncio.gather(*map(connector.fetch_image_async, urls))


def test_many_large_pictures_in_one_request(small_budget: Budget) -> None:
    """Eight PNGs of 88 megapixels in a body of 113 KiB take 4 GiB."""

    async def request(count: int) -> list[Any]:
        with small_budget.request():
            return await load_all([LARGE] * count, Glm41vMediaConnector())

    assert len(asyncio.run(request(2))) == 2
    with pytest.raises(VLLMValidationError, match="more than 15 MiB .* VLLM_GLM41V_NPU_MAX_REQ"):
        asyncio.run(request(8))
    assert_given_back(small_budget)


def test_many_large_pictures_in_many_requests(small_budget: Budget) -> None:
    """They wait for each other, and all are answered."""

    async def request() -> None:
        with small_budget.request():
            await load_all([LARGE] * 2, Glm41vMediaConnector())
            assert small_budget.used <= 30 * MEBIBYTE
            await asyncio.sleep(0.01)  # while it is processed

    async def work() -> None:
        await asyncio.wait_for(asyncio.gather(*(request() for _ in range(12))), 30)

    asyncio.run(work())
    assert small_budget.used == 0


@pytest.mark.parametrize("way", ["data", "file", "http"])
def test_large_files_in_one_request(
    way: str,
    small_budget: Budget,
    tmp_path: Path,
    port: int,
) -> None:
    """30 URLs of 99 MiB are held together."""
    (tmp_path / "file").write_bytes(bytes(4 * MEBIBYTE))
    url = {
        "data": "data:image/png;base64," + base64.b64encode(bytes(4 * MEBIBYTE)).decode(),
        "file": (tmp_path / "file").as_uri(),
        "http": f"http://127.0.0.1:{port}/endless",
    }[way]
    connector = Glm41vMediaConnector(
        allowed_local_media_path=str(tmp_path), allowed_media_domains=["127.0.0.1"]
    )

    async def request() -> None:
        with small_budget.request():
            await load_all([url] * 5, connector)

    with pytest.raises(VLLMValidationError, match="more than 15 MiB|not a picture of a kind"):
        asyncio.run(request())
    assert_given_back(small_budget)


def test_a_data_url_counts_before_it_is_read(
    small_budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the file and its letters: 9 and 12 MiB are beyond 15 MiB together."""
    monkeypatch.delattr(connector, "split_data_url")
    url = "data:image/png;base64," + "A" * (12 * MEBIBYTE)
    with pytest.raises(VLLMValidationError, match="more than 15 MiB"):
        asyncio.run(Glm41vMediaConnector().fetch_image_async(url))
    assert_given_back(small_budget)


def test_a_refused_picture_ends_the_others(small_budget: Budget, counted: list[int]) -> None:
    """asyncio.gather lets them go on: 30 pictures are decoded for a request that is over."""

    async def work() -> None:
        # whichever comes first: the three large ones are over the budget together
        refused = pytest.raises(VLLMValidationError, match="not a picture|more than 15 MiB")
        with refused, small_budget.request():
            await load_all(["data:;base64,AAAA", *[LARGE] * 3], Glm41vMediaConnector())
        await asyncio.sleep(0.2)

    asyncio.run(work())
    assert len(counted) < 3
    assert_given_back(small_budget)


def test_a_client_that_leaves(small_budget: Budget) -> None:
    """Memory is given back however far its pictures are."""

    async def work() -> None:
        for delay in range(8):
            task = asyncio.create_task(load())
            await asyncio.sleep(delay / 200)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.3)
        assert small_budget.used == 0

    async def load() -> None:
        with small_budget.request():
            await load_all([LARGE] * 3, Glm41vMediaConnector())

    asyncio.run(work())


# --- the patch ---


def test_vllm_lets_the_others_go_on() -> None:
    """When this fails, vLLM ends the other media of a refused request, and the patch may go."""
    ended = []

    async def refused() -> None:
        raise ValueError

    async def other() -> None:
        await asyncio.sleep(0.01)
        ended.append("loaded for nobody")

    async def work() -> None:
        tracker = SimpleNamespace(_items_by_modality={"image": [refused, other]})
        with pytest.raises(ValueError):
            await AsyncMultiModalItemTracker.resolve_items(tracker)
        await asyncio.sleep(0.05)

    asyncio.run(work())
    assert ended


def test_what_a_chat_loads_is_one_request(
    monkeypatch: pytest.MonkeyPatch, small_budget: Budget
) -> None:
    """Otherwise each picture has the whole budget of a request for itself."""
    seen = []

    async def render(self: object, conversations: list[str]) -> str:
        async def one(conversation: str) -> None:
            with small_budget.request() as share:
                seen.append(share)

        await asyncio.gather(*map(one, conversations))
        assert not seen[-1].has_ended
        return "rendered"

    monkeypatch.setattr(BaseRenderer, "render_chat_async", render)
    media_request.apply()
    for _ in range(2):
        assert asyncio.run(BaseRenderer.render_chat_async(None, ["a", "b"])) == "rendered"
    assert seen[0] is seen[1] and seen[2] is seen[3] and seen[0] is not seen[2]
    assert seen[0].has_ended


def test_an_empty_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM speaks of multi_modal_uuids; when it does no longer, the patch may go."""
    validate = BaseRenderer._validate_mm_uuids
    unpatched = getattr(validate, "__wrapped__", validate)
    items = {"image": [Image.new("RGB", (2, 2)), None], "video": [None]}
    with pytest.raises(ValueError, match="multi_modal_uuids"):
        unpatched(None, items, items, {"image": [None, None], "video": [None]})
    monkeypatch.setattr(BaseRenderer, "_validate_mm_uuids", unpatched)
    empty_media.apply()
    ours: Any = SimpleNamespace(
        model_config=SimpleNamespace(hf_config=SimpleNamespace(model_type="glm4v"))
    )
    patched = BaseRenderer._validate_mm_uuids
    with pytest.raises(VLLMValidationError, match="Picture 2 of 2 is empty: its URL .*image_url"):
        patched(ours, items, items, {})
    with pytest.raises(VLLMValidationError, match="Video 1 of 1 is empty: its URL .*video_url"):
        patched(ours, items, items, {"image": [None, "known"]})
    patched(ours, items, items, {"image": [None, "known"], "video": ["known"]})
