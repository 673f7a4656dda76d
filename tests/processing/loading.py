# SPDX-License-Identifier: Apache-2.0
"""Pictures by URL, for several files of tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from io import BytesIO
from typing import Any

from PIL import Image

from vllm_glm41v_npu.processing.connector import Glm41vMediaConnector
from vllm_glm41v_npu.processing.refusals import MediaRefused


def png(size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size).save(buffer, "PNG")
    return buffer.getvalue()


def load(url: str, *allowed: str, folder: str = "") -> Any:
    """A picture, by both ways, which have to agree."""
    connector = Glm41vMediaConnector(
        allowed_media_domains=list(allowed), allowed_local_media_path=folder
    )
    results: list[Any] = []
    ways: tuple[Callable[[], Any], ...] = (
        lambda: connector.fetch_image(url),
        lambda: asyncio.run(connector.fetch_image_async(url)),
    )
    for fetched in ways:
        try:
            results.append(fetched().media)
        except ValueError as error:
            results.append(str(error))
    assert results[0] == results[1]
    if isinstance(results[0], str):
        raise MediaRefused(results[0])
    return results[0]
