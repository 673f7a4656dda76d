# SPDX-License-Identifier: Apache-2.0
"""Refuse `image_embeds` that hold no tensor in a sentence.

vLLM 0.23.0 lets the errors of `torch.load` through: some are answered with 500, and they speak of
pickles and of `weights_only`. Ends when its `ImageEmbeddingMediaIO` raises one error of its own.
"""

from __future__ import annotations

from typing import Any

from vllm_glm41v_npu.patches import wrap


def apply() -> None:
    """Read the tensors of every chat with this package's reader."""
    from vllm.multimodal.media import MediaConnector

    wrap(MediaConnector, "fetch_image_embedding", _reading)


def _reading(known: Any) -> Any:
    def fetch_image_embedding(self: Any, data: str) -> Any:
        from vllm_glm41v_npu.processing.embeddings import read_embedding

        return read_embedding(data)

    return fetch_image_embedding
