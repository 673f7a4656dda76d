# SPDX-License-Identifier: Apache-2.0
"""Copies a checkpoint's tensors into the network's parameters.

Names and layouts are `convert`'s; here parts are put into their fused layers, a rank's share is
taken by vLLM's own loaders, and biases that msModelSlim has added to norms find their norm.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.utils import WeightsMapper, is_pp_missing_parameter

from vllm_glm41v_npu.checkpoint.names import (
    DEQ_SCALE,
    FUSED,
    IN_DEQ_SCALE,
    TO_NETWORK,
    fused_tensor,
    last_part,
    split_name,
)
from vllm_glm41v_npu.models.convert import Layout, WeightError, convert
from vllm_glm41v_npu.models.norm_bias import take_norm_bias

HF_TO_VLLM = WeightsMapper(orig_to_new_prefix=TO_NETWORK)
"""`names.network_name` in the form that vLLM asks for."""

SHARDS = {
    part: (part[0] if fused == "qkv_proj" else index,)
    for fused, parts in FUSED.items()
    for index, part in enumerate(parts)
}
"""Part of a fused layer to what vLLM's loader of that layer takes beside it: q, k or v, else its
place."""


class WeightLoader:
    """Loads streams of named tensors into the network.

    Args:
        model: The network.
        layout: What its checkpoint holds.
        complete: The parameters have values already, so a stream may hold any part of them.
    """

    def __init__(self, model: nn.Module, layout: Layout, complete: bool = False) -> None:
        self.model = model
        self.layout = layout
        self.complete = complete
        self.patch_embed: dict[str, torch.Tensor] = {}

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Return the names of the parameters that were filled.

        The first stream must hold the whole checkpoint; later ones, which update weights in place,
        any part of it.

        Raises:
            WeightError: A tensor is unknown, misshapen, or missing.
        """
        params = dict(self.model.named_parameters())
        loaded: set[str] = set()
        stream = convert(weights, self.layout, not self.complete, self.patch_embed)
        for name, tensor in stream:
            loaded |= self._copy(params, name, tensor)
        self.complete = True
        return loaded

    def _copy(self, params: dict[str, nn.Parameter], name: str, tensor: torch.Tensor) -> set[str]:
        """Fill a parameter, and return its name; nothing where the tensor is not needed."""
        shard = SHARDS.get(last_part(split_name(name)[0]), ())
        name = fused_tensor(name)
        if is_pp_missing_parameter(name, self.model):
            return set()
        if name not in params:
            layer, suffix = split_name(name)
            if suffix in IN_DEQ_SCALE and f"{layer}.{DEQ_SCALE}" in params:
                return set()
            if self.layout.quantized and take_norm_bias(self.model, name, tensor):
                return set()
            raise WeightError(
                f"The checkpoint holds {name!r}, which the quantization method of its layer does "
                "not know. Check that config.json's quantization_config belongs to the weights."
            )
        param = params[name]
        getattr(param, "weight_loader", default_weight_loader)(param, tensor, *shard)
        return {name}
