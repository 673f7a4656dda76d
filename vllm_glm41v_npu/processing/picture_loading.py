# SPDX-License-Identifier: Apache-2.0
"""Pictures in the media connector."""

from __future__ import annotations

from typing import Any

from PIL import Image
from vllm.multimodal.media import ImageMediaIO, MediaWithBytes

from vllm_glm41v_npu.processing.budget import Plan
from vllm_glm41v_npu.processing.colours import WHITE
from vllm_glm41v_npu.processing.media_io import PlannedIO
from vllm_glm41v_npu.processing.picture_file import plan_picture

_BACKGROUND = "rgba_background_color"


class PictureIO(PlannedIO[MediaWithBytes[Image.Image]], ImageMediaIO):
    """Makes an upright RGB picture of a file.

    ``options`` are ``media_io_kwargs`` for pictures: ``rgba_background_color``, on which
    transparency is laid, white by default.

    Raises:
        ValueError: an unknown option, or one out of range.
    """

    def __init__(self, **options: Any) -> None:
        unknown = sorted(options.keys() - {_BACKGROUND})
        if unknown:
            raise ValueError(
                f"media_io_kwargs for images has {', '.join(unknown)}; expected {_BACKGROUND}."
            )
        super().__init__(**options)

    def plan(self, data: bytes) -> Plan[MediaWithBytes[Image.Image]]:
        background = self.rgba_background_color
        plan = plan_picture(data, "The picture", background)
        # vLLM's caches know a picture by these bytes alone.
        known_by = data if background == WHITE else data + repr(background).encode()
        return Plan(plan.peak, plan.held, lambda: MediaWithBytes(plan.decode(), known_by))
