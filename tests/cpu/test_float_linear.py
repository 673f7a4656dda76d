# SPDX-License-Identifier: Apache-2.0
"""Linear layers whose weights are spaced for the cache give what others give."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from vllm.model_executor.layers.linear import UnquantizedLinearMethod

from vllm_glm41v_npu.cpu.float_linear import SpacedLinearMethod, space_weights

pytestmark = pytest.mark.cpu


class Layer(nn.Module):
    """The attributes of vLLM's linear layers that its methods read."""

    def __init__(self, out_features: int, in_features: int = 96) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features), requires_grad=False)
        self.quant_method = UnquantizedLinearMethod()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(1,), (0,), (5,), (200,), (2, 3)])
def test_the_same_product(shape: tuple[int, ...], biased: bool) -> None:
    """Guards the rows of zeros: they must not show, nor take the bias of others."""
    torch.manual_seed(0)
    layer, x = Layer(128), torch.randn(*shape, 96)
    bias = torch.randn(128) if biased else None
    expected = F.linear(x, layer.weight, bias)
    method = SpacedLinearMethod()
    method.process_weights_after_loading(layer)
    output = method.apply(layer, x, bias)
    assert output.is_contiguous()
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize(
    ("capability", "dtype", "out_features", "spaced"),
    [
        ("AVX2", torch.float32, 128, True),
        ("AVX2", torch.float32, 96, False),
        ("AVX2", torch.bfloat16, 128, False),
        ("AVX512", torch.float32, 128, False),
    ],
)
def test_where_it_helps(
    capability: str, dtype: torch.dtype, out_features: int, spaced: bool, monkeypatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    layer = Layer(out_features)
    space_weights(nn.Sequential(layer), dtype)
    assert isinstance(layer.quant_method, SpacedLinearMethod) is spaced
