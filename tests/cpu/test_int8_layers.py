# SPDX-License-Identifier: Apache-2.0
"""Quantized layers on the CPU: who adds a bias, and where a result is rounded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from vllm.model_executor.layers.linear import LinearBase, RowParallelLinear

from vllm_glm41v_npu.checkpoint.description import RULES, Description, DescriptionError
from vllm_glm41v_npu.cpu.int8_linear import DynamicLinearMethod, StaticLinearMethod
from vllm_glm41v_npu.cpu.kernels import quantize_static
from vllm_glm41v_npu.cpu.quant_config import CpuModelSlimConfig

N, K = 6, 32


def filled(kind: str, layer: nn.Module, values: dict[str, torch.Tensor]) -> Any:
    """The layer with these parameters, and its method once they are loaded."""
    method = (DynamicLinearMethod if kind == "W8A8_DYNAMIC" else StaticLinearMethod)(
        kind, RULES[kind]
    )
    for name, value in values.items():
        layer.register_parameter(name, nn.Parameter(value, requires_grad=False))
    method.process_weights_after_loading(layer)
    return method


def static(tp_rank: int | None = None) -> tuple[nn.Module, Any]:
    """A static layer; a row-parallel one where it has a rank."""
    kind = nn.Module if tp_rank is None else RowParallelLinear
    layer = kind.__new__(kind)
    nn.Module.__init__(layer)
    if tp_rank is not None:
        layer.tp_rank = tp_rank
    generator = torch.Generator().manual_seed(5)
    values = {
        "weight": torch.randint(-127, 128, (N, K), generator=generator, dtype=torch.int8),
        "weight_scale": torch.rand(N, 1, generator=generator) / 50,
        "weight_offset": torch.zeros(N, 1),
        "input_scale": torch.tensor([0.03]),
        "input_offset": torch.tensor([-17], dtype=torch.int8),
        "quant_bias": torch.arange(1000, 1000 + N, dtype=torch.int32),
        "deq_scale": torch.rand(N, generator=generator) / 1000 + 0.001,
    }
    return layer, filled("W8A8", layer, values)


def x_of(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(2, 9, K, generator=torch.Generator().manual_seed(6)).to(dtype)


def test_one_rank_of_a_row_parallel_layer_adds_the_bias() -> None:
    """Guards sums over ranks against a bias that is in them several times."""
    whole, method = static()
    want = method.apply(whole, x_of(torch.float32))
    first, others = (method.apply(static(rank)[0], x_of(torch.float32)) for rank in (0, 1))
    assert torch.equal(first, want)
    bias = torch.arange(1000, 1000 + N) * whole.deq_scale
    torch.testing.assert_close(first - others, bias.expand_as(first))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_static_layers_quantize_as_the_dtype_demands(dtype: torch.dtype) -> None:
    """Guards msModelSlim's rounding in float32, and the NPU's in half precision."""
    layer, method = static()
    x = x_of(dtype)
    rule = "msmodelslim" if dtype == torch.float32 else "npu"
    x_q = quantize_static(x, 0.03, -17, rule)  # type: ignore[arg-type]
    halves = (torch.arange(-99, 100, 2) * 0.015).to(dtype)
    ways = [quantize_static(halves, 0.03, -17, way) for way in ("msmodelslim", "npu")]
    assert not torch.equal(*ways)
    weight = layer.packed_weight.unpack().double()
    want = (x_q.double() @ weight.t() + layer.quant_bias) * layer.deq_scale.double()
    assert torch.equal(method.apply(layer, x), want.float().to(dtype))
    rows = torch.cat([halves, halves.new_zeros(-len(halves) % K)]).view(-1, K)
    steps = quantize_static(rows, 0.03, -17, rule).double()  # type: ignore[arg-type]
    want = (steps @ weight.t() + layer.quant_bias) * layer.deq_scale.double()
    assert torch.equal(method.apply(layer, rows), want.float().to(dtype))


def test_a_dynamic_layer_rounds_once() -> None:
    """Guards half precision: the bias is added before the one rounding."""
    layer = nn.Module()
    generator = torch.Generator().manual_seed(7)
    weight = torch.randint(-127, 128, (N, K), generator=generator, dtype=torch.int8)
    scale = torch.rand(N, 1, generator=generator) / 50
    values = {"weight": weight, "weight_scale": scale, "weight_offset": torch.zeros(N, 1)}
    method = filled("W8A8_DYNAMIC", layer, values)
    x, bias = x_of(torch.bfloat16), torch.randn(N, generator=generator).bfloat16() * 30
    rows = x.float().view(-1, K)
    token = rows.abs().amax(-1, keepdim=True) / 127
    sums = (rows / token).round().double() @ weight.double().t()
    exact = (sums * scale.double().t() * token.double()).float()
    assert torch.equal(method.apply(layer, x).view(-1, N), exact.bfloat16())
    want = (exact + bias.float()).bfloat16()
    assert torch.equal(method.apply(layer, x, bias).view(-1, N), want)
    assert not torch.equal(want, exact.bfloat16() + bias)


def test_types_that_nothing_computes_are_refused() -> None:
    """Guards a type of another version: int4 weights read as floats would be noise."""
    config = CpuModelSlimConfig()
    config.description = Description.from_json({"a.weight": "W4A8_DYNAMIC", "b.weight": "FLOAT"})
    layer: Any = LinearBase.__new__(LinearBase)
    with pytest.raises(DescriptionError, match="gives a the type 'W4A8_DYNAMIC'; the CPU computes"):
        config.get_quant_method(layer, "a")
    assert type(config.get_quant_method(layer, "b")).__name__ == "UnquantizedLinearMethod"
    assert config.get_quant_method(SimpleNamespace(), "b") is None
