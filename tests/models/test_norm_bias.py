# SPDX-License-Identifier: Apache-2.0
"""Biases of RMSNorms, where a loader fills parameters and calls no `weight_loader`."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.layernorm import RMSNorm

from vllm_glm41v_npu.models.norm_bias import add_norm_biases, take_norm_bias


class BackendNorm(RMSNorm):
    """A norm like vllm-ascend's: it has a bias, and adds it only after its loader was called."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.bias = nn.Parameter(torch.zeros(size), requires_grad=False)
        self.bias_loaded = False


@pytest.mark.parametrize("kind", [RMSNorm, BackendNorm])
def test_norms_take_the_biases_of_shards(kind: type[RMSNorm]) -> None:
    """Guards against a bias that is there, is filled, and is not added."""
    with set_current_vllm_config(VllmConfig()):
        network = nn.ModuleDict({"norm": kind(8), "post_projection_norm": nn.LayerNorm(8)})
    add_norm_biases(network, ["norm.weight", "norm.bias"])
    norm = network["norm"]
    assert norm.bias_loaded
    state = network.state_dict()
    state["norm.bias"].copy_(torch.arange(8.0))
    assert torch.equal(norm.bias, torch.arange(8.0))


def test_a_bias_is_added_once_however_often_it_is_loaded() -> None:
    """Guards updates of weights: a second load replaces the first one."""
    with set_current_vllm_config(VllmConfig()):
        network = nn.ModuleDict({"norm": RMSNorm(8), "plain": RMSNorm(8)})
    x = torch.randn(3, 8)
    for bias in (torch.ones(8), torch.arange(8.0), torch.zeros(8)):
        assert take_norm_bias(network, "norm.bias", bias)
        norm, plain = network["norm"], network["plain"]
        torch.testing.assert_close(norm(x), plain(x) + bias)
        normed, total = norm(x, torch.ones(3, 8))
        expected, expected_total = plain(x, torch.ones(3, 8))
        torch.testing.assert_close(normed, expected + bias)
        torch.testing.assert_close(total, expected_total)


def test_norms_without_biases_stay() -> None:
    """Guards shards without them: sharded_state refuses a parameter that no file has."""
    with set_current_vllm_config(VllmConfig()):
        network = nn.ModuleDict({"norm": RMSNorm(8)})
    add_norm_biases(network, ["norm.weight"])
    assert dict(network.named_parameters()).keys() == {"norm.weight"}
