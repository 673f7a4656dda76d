# SPDX-License-Identifier: Apache-2.0
"""vLLM's loader of pictures by URL, with clearer answers to bad files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image, UnidentifiedImageError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector


@MEDIA_CONNECTOR_REGISTRY.register("http")
class Glm41vMediaConnector(MediaConnector):
    """Takes the place of vLLM's default connector in processes that import this module.

    Pillow's refusal of a decompression bomb is no ``ValueError`` nor ``OSError``, so vLLM 0.23.0
    answers it with 500, as if the server had failed; here the caller is told (400). And of a file
    that is no picture, vLLM's message says only at which address in memory it was.
    """

    def fetch_image(self, image_url: str, **kwargs: Any) -> Image.Image:
        with _clear_refusals():
            return super().fetch_image(image_url, **kwargs)

    async def fetch_image_async(self, image_url: str, **kwargs: Any) -> Image.Image:
        with _clear_refusals():
            return await super().fetch_image_async(image_url, **kwargs)


@contextmanager
def _clear_refusals() -> Iterator[None]:
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ValueError(f"The picture was not decoded: {error} Send a smaller picture.") from error
    except ValueError as error:
        if not isinstance(error.__cause__, UnidentifiedImageError):
            raise
        raise ValueError(
            "The file is not a picture of a kind that Pillow reads, whatever its name says; "
            "expected PNG, JPEG, WebP or the like. Check what was sent."
        ) from error
