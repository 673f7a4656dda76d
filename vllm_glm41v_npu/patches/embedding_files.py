# SPDX-License-Identifier: Apache-2.0
"""Refuse `image_embeds` that hold no tensor in a sentence.

vLLM 0.23.0 lets the errors of `torch.load` through: some are answered with 500, and they speak of
pickles and of `weights_only`. Can go when its `ImageEmbeddingMediaIO` raises one error of its own.
"""

from __future__ import annotations

import torch


def apply() -> None:
    """Read the tensors of every chat so."""
    from vllm.multimodal.media import MediaConnector

    def fetch_image_embedding(self: MediaConnector, data: str) -> torch.Tensor:
        from vllm_glm41v_npu.processing.embeddings import read_embedding

        return read_embedding(data)

    MediaConnector.fetch_image_embedding = fetch_image_embedding
