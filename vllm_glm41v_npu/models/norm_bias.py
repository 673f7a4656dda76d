# SPDX-License-Identifier: Apache-2.0
"""Biases of RMSNorms, which msModelSlim's outlier suppression adds.

The tool wraps each norm to compute `norm(x) + bias`. The bias is zero unless it shifted the
activations, and no RMSNorm of this model has one: zeros are skipped, and others are added after the
norm, which is exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import torch
from torch import nn
from vllm.model_executor.layers.layernorm import RMSNorm

from vllm_glm41v_npu.checkpoint.names import is_norm_bias

Normed: TypeAlias = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


class BiasedRMSNorm(RMSNorm):
    """An RMSNorm whose `bias`, [hidden_size], is added to what it returns."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Normed:
        normed = super().forward(x, residual)
        if residual is None:
            return normed + self.bias
        return normed[0] + self.bias, normed[1]


def take_norm_bias(model: nn.Module, name: str, bias: torch.Tensor) -> bool:
    """Let an RMSNorm of `model` add this bias; False where `name` is no such bias.

    Args:
        model: The network.
        name: The tensor's name in the network.
        bias: [hidden_size].
    """
    owner, _, suffix = name.rpartition(".")
    modules = dict(model.named_modules())
    norm = modules.get(owner)
    if suffix != "bias" or not isinstance(norm, RMSNorm) or bias.shape != norm.weight.shape:
        return False
    if bias.any() or isinstance(norm, BiasedRMSNorm):
        _set_bias(norm, bias)
    return True


def add_norm_biases(model: nn.Module, described: Iterable[str]) -> None:
    """Give every RMSNorm a bias of zeros, if the bias of any norm is among the tensors described.

    That is vllm-ascend's rule, and so what per-rank shards hold. vLLM's `sharded_state` fills the
    parameters that are there, and refuses a tensor that has none.
    """
    if any(map(is_norm_bias, described)):
        for module in list(model.modules()):
            if isinstance(module, RMSNorm):
                _set_bias(module, torch.zeros_like(module.weight))


def _set_bias(norm: RMSNorm, bias: torch.Tensor) -> None:
    if type(norm) is RMSNorm:
        norm.__class__ = BiasedRMSNorm  # in place, so that names and references stay
    # A backend's own norm (vllm-ascend's) adds a bias that it has, and that it knows is loaded.
    norm.bias = nn.Parameter(bias.to(norm.weight), requires_grad=False)
    norm.bias_loaded = True
