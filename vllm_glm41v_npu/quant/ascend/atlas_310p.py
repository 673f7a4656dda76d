# SPDX-License-Identifier: Apache-2.0
"""Schemes of Atlas 310P."""

from __future__ import annotations

from torch import nn
from vllm_ascend._310p.quantization.methods.w8a8_static import AscendW8A8LinearMethod310
from vllm_ascend._310p.quantization.methods.w8a8s import AscendW8A8SLinearMethod310

from .norms import fuse_norms


class StaticScheme(AscendW8A8LinearMethod310):
    """W8A8."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        super().process_weights_after_loading(layer)
        fuse_norms(layer)


class SparseScheme(AscendW8A8SLinearMethod310):
    """W8A8S, whose shards are saved after loading."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        super().process_weights_after_loading(layer)
        fuse_norms(layer)


SCHEMES = {"W8A8": StaticScheme, "W8A8S": SparseScheme}
