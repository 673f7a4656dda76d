# SPDX-License-Identifier: Apache-2.0
"""Linear layers in int8 on the CPU, in the arithmetic of msModelSlim's formats.

A static layer (W8A8, W8A8S) quantizes its input by one scale and offset:

    x_q = clip(round(x / input_scale) + input_offset, -128, 127)
    y   = (x_q . weight^T + quant_bias) * deq_scale

A dynamic layer (W8A8_DYNAMIC) quantizes each token by its largest value, symmetrically:

    y = (x_q . weight^T) * weight_scale * token_scale + bias

W8A8SC is W8A8S with a weight that is compressed on disk and decoded when it is loaded.

Source: msmodelslim/pytorch/llm_ptq/llm_ptq_tools/save/complex_quantifier.py; rounding as in
vllm-ascend's quantization/methods/w8a8_static.py and w8a8_dynamic.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn
from vllm.model_executor.layers.linear import LinearMethodBase, RowParallelLinear
from vllm.model_executor.utils import set_weight_attrs

from vllm_glm41v_npu.checkpoint.description import COMPRESSED, DYNAMIC, RULES, SPARSE, STATIC, Rule
from vllm_glm41v_npu.checkpoint.names import (
    DEQ_SCALE,
    INPUT_OFFSET,
    INPUT_SCALE,
    QUANT_BIAS,
    WEIGHT_SCALE,
)
from vllm_glm41v_npu.cpu import kernels
from vllm_glm41v_npu.quant.scales import float_scale
from vllm_glm41v_npu.quant.w8a8sc import portable
from vllm_glm41v_npu.quant.w8a8sc.container import PARTS, Compressed
from vllm_glm41v_npu.quant.w8a8sc.record import ShardError
from vllm_glm41v_npu.quant.w8a8sc.shards import Stored

DTYPES = {
    "weight": torch.int8,
    INPUT_OFFSET: torch.int8,
    QUANT_BIAS: torch.int32,
    DEQ_SCALE: torch.float32,
}
"""Dtypes of the parameters that are not in the network's dtype."""


class Int8LinearMethod(LinearMethodBase):
    """Base of all types: its parameters are the tensors that a layer of this type has on disk.

    Args:
        kind: The type.
        rules: Shape and dtype of each of these tensors, by name.
    """

    dtypes: Mapping[str, torch.dtype] = DTYPES

    def __init__(self, kind: str, rules: Mapping[str, Rule]) -> None:
        self.kind, self.rules = kind, rules

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **attributes: Any,
    ) -> None:
        sizes = sum(output_partition_sizes), input_size_per_partition
        for name, rule in self.rules.items():
            if name == "bias":
                continue  # the layer makes its own
            data = torch.empty(rule.sizes(*sizes), dtype=self.dtypes.get(name, params_dtype))
            param = nn.Parameter(data, requires_grad=False)
            per_channel = "N" in rule.shape
            placed: dict[str, int] = {"output_dim": 0} if per_channel else {"ignore_warning": True}
            if "K" in rule.shape:
                placed["input_dim"] = 1
            set_weight_attrs(param, placed | attributes)
            if name == DEQ_SCALE:
                param.weight_loader = _from_bits(param.weight_loader)
            layer.register_parameter(name, param)

    def _pack(self, layer: nn.Module) -> dict[str, torch.Tensor]:
        """Pack the weight, remove the other loaded tensors from the layer and return them."""
        packed = layer.packed_weight = kernels.pack_weight(layer.weight.data)
        # vLLM's LoRA layers read the device of `weight`.
        layer.weight = nn.Parameter(packed.values, requires_grad=False)
        taken = {}
        for name in self.rules.keys() - {"weight", "bias"}:
            taken[name] = getattr(layer, name).data
            delattr(layer, name)
        return taken


class StaticLinearMethod(Int8LinearMethod):
    """W8A8 and W8A8S. `quant_bias` contains the layer's bias, so the float bias is not added."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        loaded = self._pack(layer)
        layer.input_scale = loaded[INPUT_SCALE].item()
        layer.input_offset = int(loaded[INPUT_OFFSET])
        layer.deq_scale = float_scale(loaded[DEQ_SCALE])
        # The outputs of a row-parallel layer are all-reduced, so only one rank adds the bias.
        adds_bias = not isinstance(layer, RowParallelLinear) or layer.tp_rank == 0
        layer.quant_bias = loaded[QUANT_BIAS] if adds_bias else None

    def apply(
        self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[..., K] to [..., N] in the dtype of x.

        float32 follows msModelSlim's formula; half precision rounds as the NPU does in that dtype.
        """
        rows = x.reshape(-1, x.shape[-1])  # [M, K]
        rule: Literal["msmodelslim", "npu"] = "msmodelslim" if x.dtype == torch.float32 else "npu"
        x_q = kernels.quantize_static(rows, layer.input_scale, layer.input_offset, rule)
        y = kernels.int8_linear(
            x_q, layer.packed_weight, layer.deq_scale, layer.quant_bias, None, x.dtype
        )
        return y.view(*x.shape[:-1], y.shape[-1])  # [..., N]


class CompressedLinearMethod(StaticLinearMethod):
    """W8A8SC in the open codec: W8A8S, once its weight is decoded.

    vLLM's sharded_state copies the file's tensors unchanged, so the parameters have the file's
    shapes and dtypes.
    """

    dtypes = DTYPES | {"index": torch.int8, "info": torch.int64, DEQ_SCALE: torch.int64}

    def __init__(self, stored: Stored) -> None:
        static = {name: rule for name, rule in RULES[SPARSE].items() if rule.required}
        parts = {part: Rule((), size) for part, size in stored.sizes.items()}
        super().__init__(COMPRESSED, static | parts)
        self.stored = stored

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Decode the weight, then go on as for W8A8S.

        Raises:
            ContainerError: The compressed weight is damaged.
            ShardError: It has another shape than config.json says.
        """
        parts = Compressed(*(getattr(layer, part).data for part in PARTS))
        weight = portable.decode(self.stored.name, parts, self.stored.checksum)
        expected = layer.output_size_per_partition, layer.input_size_per_partition
        if weight.shape != expected:
            raise ShardError(
                f"{self.stored.name} has shape {list(weight.shape)} in the shards, and "
                f"{list(expected)} by config.json. Copy both from the same folder again."
            )
        layer.weight = nn.Parameter(weight, requires_grad=False)
        super().process_weights_after_loading(layer)


class DynamicLinearMethod(Int8LinearMethod):
    """W8A8_DYNAMIC."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        layer.deq_scale = self._pack(layer)[WEIGHT_SCALE].float().flatten()  # [N, 1] -> [N]

    def apply(
        self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[..., K] to [..., N] in the dtype of x."""
        rows = x.reshape(-1, x.shape[-1])  # [M, K]
        x_q, token_scale = kernels.quantize_per_token(rows)
        # With a bias, rounding to the dtype of x comes after it.
        out_dtype = x.dtype if bias is None else torch.float32
        y = kernels.int8_linear(
            x_q, layer.packed_weight, layer.deq_scale, None, token_scale, out_dtype
        )
        if bias is not None:
            y = (y + bias.float()).to(x.dtype)
        return y.view(*x.shape[:-1], y.shape[-1])  # [..., N]


METHODS: dict[str, type[Int8LinearMethod]] = {
    **dict.fromkeys(STATIC, StaticLinearMethod),
    DYNAMIC: DynamicLinearMethod,
}
"""Method of each type with a fixed set of tensors; the sizes of W8A8SC's vary by layer."""


def _from_bits(loader: Callable[..., None]) -> Callable[..., None]:
    """Return a weight loader that takes a scale as msModelSlim stores it, as bits of a float32."""

    def load(param: nn.Parameter, scale: torch.Tensor, *shard: Any) -> None:
        loader(param, float_scale(scale), *shard)

    return load
