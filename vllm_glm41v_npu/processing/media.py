# SPDX-License-Identifier: Apache-2.0
"""vLLM's loader of pictures by URL, with one more kind of bad file answered as such."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector


@MEDIA_CONNECTOR_REGISTRY.register("http")
class Glm41vMediaConnector(MediaConnector):
    """Takes the place of vLLM's default connector in processes that import this module.

    Pillow's refusal of a decompression bomb is no ``ValueError`` nor ``OSError``, so vLLM 0.23.0
    answers it with 500, as if the server had failed; here the caller is told (400).
    """

    def fetch_image(self, image_url: str, **kwargs: Any) -> Image.Image:
        with _bombs_are_bad_requests():
            return super().fetch_image(image_url, **kwargs)

    async def fetch_image_async(self, image_url: str, **kwargs: Any) -> Image.Image:
        with _bombs_are_bad_requests():
            return await super().fetch_image_async(image_url, **kwargs)


@contextmanager
def _bombs_are_bad_requests() -> Iterator[None]:
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ValueError(f"The picture was not decoded: {error} Send a smaller picture.") from error
