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


def add_bias(norm: nn.Module, inputs: tuple[torch.Tensor, ...], normed: Normed) -> Normed:
    """Add the norm's `bias`, [hidden_size], to its output: a forward hook of vLLM's RMSNorm."""
    if isinstance(normed, tuple):  # with the sum of x and residual
        return normed[0] + norm.bias, normed[1]
    return normed + norm.bias


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
    if bias.any() or getattr(norm, "bias", None) is not None:
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
    if not hasattr(norm, "bias"):  # vllm-ascend's norm has one, and adds it once it is loaded
        norm.register_forward_hook(add_bias)
    norm.bias = nn.Parameter(bias.to(norm.weight), requires_grad=False)
    norm.bias_loaded = True
