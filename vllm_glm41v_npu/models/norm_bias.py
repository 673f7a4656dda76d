# SPDX-License-Identifier: Apache-2.0
"""Norms as msModelSlim's outlier suppression writes them: wrapped, and with a bias each.

Its wrapper computes `norm(x) + bias`. The bias is zero unless the tool shifted the activations,
and no RMSNorm of this model has one: zeros are skipped, and others added after the norm, which is
exact. In the form for MindIE a norm is there twice, and the `.module.` one is what was computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

import torch
from torch import nn
from vllm.model_executor.layers.layernorm import RMSNorm

from vllm_glm41v_npu.checkpoint.folder import plain_name

Normed: TypeAlias = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def unwrapped(
    weights: Iterable[tuple[str, torch.Tensor]],
) -> Iterator[tuple[str, torch.Tensor]]:
    """The same stream by plain names, in which a wrapped tensor is the last of its name."""
    wrapped = set()
    for name, tensor in weights:
        plain = plain_name(name)
        if plain != name:
            wrapped.add(plain)
        elif name in wrapped:
            continue
        yield plain, tensor


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
    if any("norm.bias" in name for name in described):
        for module in list(model.modules()):
            if isinstance(module, RMSNorm):
                _set_bias(module, torch.zeros_like(module.weight))


def _set_bias(norm: RMSNorm, bias: torch.Tensor) -> None:
    if not hasattr(norm, "bias"):  # vllm-ascend's norm has one, and adds it once it is loaded
        norm.register_forward_hook(add_bias)
    norm.bias = nn.Parameter(bias.to(norm.weight), requires_grad=False)
    norm.bias_loaded = True
