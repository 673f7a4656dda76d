# SPDX-License-Identifier: Apache-2.0
"""An embedding table that is no output projection too."""

from __future__ import annotations

from torch import nn
from vllm.model_executor.layers.vocab_parallel_embedding import (
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)


class EmbeddingLookup(UnquantizedEmbeddingMethod):
    """Of a table that is never multiplied with: vLLM's method packs a second copy of it for that.

    At the true size that copy is 1.2 GB, on CPUs and on Atlas 300I DUO.
    """

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Leave the table as it is."""


def look_up_only(embedding: VocabParallelEmbedding) -> None:
    """Say that `embedding` is no output projection; a quantized one keeps its own method."""
    if isinstance(embedding.quant_method, UnquantizedEmbeddingMethod):
        embedding.quant_method = EmbeddingLookup()
