# SPDX-License-Identifier: Apache-2.0
"""The MLP of both towers: SwiGLU, down_proj(silu(gate) * up)."""

from __future__ import annotations

import torch
from torch import nn
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.quantization import QuantizationConfig


class SwiGLU(nn.Module):
    """SwiGLU whose gate and up projections are one layer.

    On disk they are one tensor in the decoder and two in the vision tower.

    Args:
        hidden_size: Channels of the input and of the output.
        intermediate_size: Channels of gate and of up.
        quant_config: The checkpoint's quantization.
        prefix: The module's name in the network.
        disable_tp: Every rank holds the whole layer.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
        disable_tp: bool = False,
    ) -> None:
        super().__init__()
        self.gate_up_proj = MergedColumnParallelLinear(
            hidden_size,
            [intermediate_size] * 2,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.gate_up_proj",
            disable_tp=disable_tp,
        )
        self.down_proj = RowParallelLinear(
            intermediate_size,
            hidden_size,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.down_proj",
            disable_tp=disable_tp,
        )
        self.act_fn = SiluAndMul()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden_size] to the same shape."""
        gate_up, _ = self.gate_up_proj(x)  # [tokens, 2 * intermediate_size]
        out, _ = self.down_proj(self.act_fn(gate_up))
        return out
