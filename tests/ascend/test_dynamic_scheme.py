# SPDX-License-Identifier: Apache-2.0
"""W8A8_DYNAMIC on the emulated chip, with weights that would bring float16 beyond its range.

Atlas 310P alone has a scheme of ours for it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.ascend
N, K = 64, 512


@pytest.fixture(scope="module")
def scheme(emulated: None) -> Any:
    from vllm_glm41v_npu.backends import ATLAS_310P, current_backend, resolve

    if current_backend() is not ATLAS_310P:
        pytest.skip("vllm-ascend's own scheme runs here; test_quantized_layers.py has its formula")

    scheme = resolve(current_backend().schemes)["W8A8_DYNAMIC"]
    return scheme.__new__(scheme)


def loaded(scheme: Any, weight: torch.Tensor, scale: torch.Tensor) -> Any:
    """A layer with this weight int8 [N, K] and scale float32 [N, 1], after loading."""
    layer = nn.Module()
    values = {"weight": weight, "weight_scale": scale, "weight_offset": torch.zeros(N, 1)}
    for name, value in values.items():
        layer.register_parameter(name, nn.Parameter(value.npu(), requires_grad=False))
    layer.params_dtype, layer.prefix = torch.float16, "layer"
    scheme.process_weights_after_loading(layer)
    return layer


@pytest.mark.parametrize("size", [0.0, 1e-3, 0.01, 0.05, 0.3])
@pytest.mark.parametrize("biased", [False, True])
def test_sums_that_float16_does_not_hold_are_right(scheme: Any, size: float, biased: bool) -> None:
    """Guards the largest sum there can be, of inputs and weights of 127, at every size of scales.

    A token's scale brings it back: the result is small, and what is on the way is not.
    """
    generator = torch.Generator().manual_seed(1)
    weight = torch.randint(-127, 128, (N, K), generator=generator, dtype=torch.int8)
    weight[:4] = torch.tensor([127, -127, 1, 0], dtype=torch.int8)[:, None]
    scale = torch.full((N, 1), size) * (0.5 + torch.rand(N, 1, generator=generator) / 2)
    scale[0] = size
    layer = loaded(scheme, weight, scale)
    x = torch.randn(3, 5, K, generator=generator) / 100
    x[0, 0], x[1, 1] = 0.01, -0.01  # every input is 127 steps
    x = x.half()
    bias = torch.randn(N, generator=generator).half() if biased else None
    token = x.float().abs().amax(-1, keepdim=True) / 127
    sums = (x.float() / token).round().double() @ weight.double().t()
    want = sums * scale.double().t() * token.double()
    if bias is not None:
        want += bias.double()
    got = scheme.apply(layer, x.npu(), None if bias is None else bias.npu()).cpu()
    assert got.dtype == torch.float16 and got.isfinite().all()
    # Of float16, a step of the sum and one of the sum with its bias.
    without = want if bias is None else want - bias.double()
    step = 2.0**-10 * torch.maximum(want.abs(), without.abs()) + 2.0**-24
    assert ((got.double() - want).abs() <= 1.01 * step).all()


def test_scales_are_kept_in_full(scheme: Any) -> None:
    """Guards scales below what float16 holds, such as 1e-8."""
    weight = torch.ones(N, K, dtype=torch.int8)
    layer = loaded(scheme, weight, torch.full((N, 1), 1.1e-8))
    x = torch.full((2, K), 60000.0).half()
    got = scheme.apply(layer, x.npu(), None).cpu().float()
    torch.testing.assert_close(got, torch.full((2, N), 1.1e-8 * 60000 * K), rtol=2e-3, atol=0)
