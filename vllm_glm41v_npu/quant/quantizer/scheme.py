# SPDX-License-Identifier: Apache-2.0
"""One group of linear layers, from float weights and observed inputs to the format's tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from vllm_glm41v_npu.checkpoint.names import (
    DEQ_SCALE,
    INPUT_OFFSET,
    INPUT_SCALE,
    QUANT_BIAS,
    WEIGHT_OFFSET,
    WEIGHT_SCALE,
)
from vllm_glm41v_npu.quant.quantizer import arithmetic, sparse
from vllm_glm41v_npu.quant.quantizer.arithmetic import InputScale, dynamic_input, round_up
from vllm_glm41v_npu.quant.quantizer.observers import ESTIMATORS, Observer
from vllm_glm41v_npu.quant.quantizer.plan import W8A8, W8A8_DYNAMIC, W8A8S
from vllm_glm41v_npu.quant.scales import stored_scale

ERROR_ROWS = 512
"""Kept tokens on which a layer's error is measured, at most."""


@dataclass(frozen=True)
class Settings:
    """The numbers by which layers are quantized.

    Attributes:
        type: One of `plan.TYPES`.
        dtype: What the checkpoint runs in, torch.float16 or torch.bfloat16.
        estimator: One of `observers.ESTIMATORS`, for the static types.
        alpha: How much of the inputs' outliers goes into the weights, from 0 to 1; None looks for
            the best value for each norm.
        fraction: W8A8S's outliers, as a part of a row.
        sigma: Where W8A8S's bulk ends at the latest, in standard deviations.
        compensate: Whether W8A8S makes up for rounding errors.
    """

    type: str = W8A8
    dtype: torch.dtype = torch.float16
    estimator: str = "minmax"
    alpha: float | None = None
    fraction: float = 0.01
    sigma: float = 3.0
    compensate: bool = True

    @property
    def needs_products(self) -> bool:
        return self.type == W8A8S and self.compensate

    def input_scale(self, observer: Observer) -> InputScale | None:
        """The static scale for these inputs; None where each token has its own."""
        if self.type == W8A8_DYNAMIC:
            return None
        low, high = ESTIMATORS[self.estimator](observer, self.dtype)
        return arithmetic.input_scale(low, high, self.dtype)

    def weight(self, weight: Tensor, products: Tensor | None) -> tuple[Tensor, Tensor]:
        """Integers in float32 [N, K], and their scale, float32 [N, 1]."""
        if self.type != W8A8S:
            # Stored in the model's dtype, so rounded before it is used.
            scale = round_up(arithmetic.weight_scale(weight), self.dtype)
            return arithmetic.quantize_weight(weight, scale), scale
        scale = sparse.scale_of_bulk(weight, self.fraction, self.sigma)
        if products is None:
            return sparse.round_sparse(weight, scale), scale
        return sparse.round_compensated(weight, scale, products), scale


@dataclass(frozen=True)
class Layer:
    """A quantized linear layer.

    Attributes:
        integers: float32 [N, K].
        scale: float32 [N, 1], of a step of them.
        input_scale: The static one, or None.
    """

    integers: Tensor
    scale: Tensor
    input_scale: InputScale | None

    def output(self, x: Tensor) -> Tensor:
        """Compute its output for x, without its bias: [tokens, K] to [tokens, N]."""
        return linear(restored_input(x, self.input_scale), self.integers * self.scale)

    def tensors(self, name: str, bias: Tensor | None, settings: Settings) -> dict[str, Tensor]:
        """Return its tensors in the file by their suffixes; `bias` itself is not among them.

        Raises:
            QuantizerError: The bias does not fit.
        """
        stored = {"weight": self.integers.to(torch.int8)}
        if settings.type != W8A8S:
            stored[WEIGHT_SCALE] = self.scale.to(settings.dtype)
            stored[WEIGHT_OFFSET] = torch.zeros_like(stored[WEIGHT_SCALE])
        if self.input_scale is None:
            return stored
        scale, offset = self.input_scale.scale, self.input_scale.offset
        # msModelSlim keeps the two in float32 in a float16 checkpoint.
        kept = torch.bfloat16 if settings.dtype == torch.bfloat16 else torch.float32
        deq_scale = scale * self.scale[:, 0]
        bias_steps = arithmetic.quant_bias(self.integers, bias, deq_scale, offset, name)
        return stored | {
            INPUT_SCALE: scale.to(kept, copy=True),  # q, k and v share one
            INPUT_OFFSET: offset.to(kept, copy=True),
            QUANT_BIAS: bias_steps,
            DEQ_SCALE: stored_scale(deq_scale, settings.dtype),
        }


def restored_input(x: Tensor, scale: InputScale | None) -> Tensor:
    """x after quantization and back."""
    return dynamic_input(x) if scale is None else scale.restore(scale.quantize(x))


def quantize_group(weights: list[Tensor], observer: Observer, settings: Settings) -> list[Layer]:
    """The layers of a group, all with the same input scale; weights are float32 [N, K]."""
    scale = settings.input_scale(observer)
    products = observer.products if settings.needs_products else None
    # As one layer, because preparing for compensation takes long; every row is by itself.
    whole = torch.cat(weights) if len(weights) > 1 else weights[0]
    rows = [len(weight) for weight in weights]
    integers, steps = (part.split(rows) for part in settings.weight(whole, products))
    return [Layer(*parts, scale) for parts in zip(integers, steps, strict=True)]


def evenly(rows: Tensor, count: int) -> Tensor:
    """At most `count` rows, evenly chosen: [rows, K] to [count, K]."""
    return rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).long()]


def relative_error(want: Tensor, got: Tensor) -> float:
    """The error's size beside the output's: norm(got - want) / norm(want)."""
    return ((got - want).norm() / want.norm().clamp(min=torch.finfo(want.dtype).tiny)).item()
