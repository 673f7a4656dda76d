# SPDX-License-Identifier: Apache-2.0
"""Tell a caller that a picture's or a video's URL is empty, in words of the request.

vLLM 0.23.0 takes `"image_url": ""` for a picture that it was sent before, and says that
"multi_modal_uuids['image'][0] is missing", which no caller has heard of. Ends when it names the
URL.
"""

from __future__ import annotations

from typing import Any

from vllm_glm41v_npu.family import is_ours
from vllm_glm41v_npu.patches import wrap


def apply() -> None:
    """Look at each medium of a chat, before vLLM does."""
    from vllm.renderers.base import BaseRenderer

    wrap(BaseRenderer, "_validate_mm_uuids", _refusing_empty)


def _refusing_empty(validate: Any) -> Any:
    def validate_media(self: Any, data: Any, items: Any, uuids: Any) -> None:
        for modality, given in items.items() if is_ours(self.model_config) else ():
            names = uuids.get(modality) or [None] * len(given)
            for number, (item, name) in enumerate(zip(given, names, strict=False), start=1):
                if item is None and name is None:
                    raise _empty(modality, number, len(given))
        validate(self, data, items, uuids)

    return validate_media


def _empty(modality: str, number: int, total: int) -> ValueError:
    from vllm.exceptions import VLLMValidationError

    kind = {"image": "Picture"}.get(modality, modality.capitalize())
    return VLLMValidationError(
        f"{kind} {number} of {total} is empty: its URL is missing or an empty text. Expected "
        f'{{"type": "{modality}_url", "{modality}_url": {{"url": "https://... or data:..."}}}}.'
    )
