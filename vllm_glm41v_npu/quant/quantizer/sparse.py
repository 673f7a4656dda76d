# SPDX-License-Identifier: Apache-2.0
"""W8A8S's weights: 4 bits but for a few outliers, with rounding errors compensated.

msModelSlim's own method is not published; this one is made of published parts. A row has one
scale, as the format demands. It is chosen so that the row's bulk falls into -8..7, and a small
fraction, the outliers, keeps the whole range of int8. Rounding goes column by column, and what a
column loses is made up for by the columns that are not rounded yet, along the inverse of the
inputs' second moments (Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_glm41v_npu.quant.quantizer.arithmetic import MOST

LEAST_4_BIT, MOST_4_BIT = -8.0, 7.0
HALF_RANGE = 7.5
"""The bound in steps: a value nearer to zero rounds into 4 bits, on either side."""

DAMPING = 0.01
"""Added to the diagonal, as a part of its mean (GPTQ's own value)."""

BLOCK = 64
"""Columns after which the compensation of all later ones is carried out at once."""


def scale_of_bulk(weight: Tensor, fraction: float, sigma: float) -> Tensor:
    """The scale with which a row's bulk fits 4 bits: float32 [N, K] to [N, 1].

    The bulk ends at the (1 - fraction) quantile of abs(weight), or at `sigma` standard deviations
    where that is less: a row with heavy tails has more outliers than `fraction`, rather than few
    steps for all the others.
    """
    magnitude = weight.abs()
    columns = weight.shape[1]
    largest = columns - int(fraction * columns)  # the how manieth smallest ends the bulk
    quantile = magnitude.kthvalue(max(1, largest), dim=1, keepdim=True).values
    deviation = magnitude.square().mean(1, keepdim=True).sqrt()
    end = torch.minimum(quantile, sigma * deviation)
    # No weight may need more than int8.
    end = torch.maximum(end, magnitude.amax(1, keepdim=True) * (HALF_RANGE / MOST))
    whole = end.amax() if end.amax() > 0 else end.new_ones(())
    return torch.where(end > 0, end, whole) / HALF_RANGE


def outliers(steps: Tensor) -> Tensor:
    """Find the weights, in steps, that do not fit 4 bits: bool of the same shape."""
    rounded = steps.round()
    return (rounded < LEAST_4_BIT) | (rounded > MOST_4_BIT)


def round_within(steps: Tensor, outlier: Tensor) -> Tensor:
    """To the nearest integer of int8 for outliers, and of 4 bits for all others."""
    rounded = steps.round()
    bulk = rounded.clamp(LEAST_4_BIT, MOST_4_BIT)
    return torch.where(outlier, rounded.clamp_(-MOST, MOST), bulk)


def round_sparse(weight: Tensor, scale: Tensor) -> Tensor:
    """Each weight to the nearest integer: float32 of integers [N, K]."""
    steps = weight / scale
    return round_within(steps, outliers(steps))


def round_compensated(weight: Tensor, scale: Tensor, products: Tensor) -> Tensor:
    """Round as `round_sparse`, and make the error of the output small.

    The bulk stays in 4 bits, also where compensation moves it.

    Args:
        weight: float32 [N, K].
        scale: float32 [N, 1].
        products: float32 [K, K], the sum of x^T . x over the inputs.

    Returns:
        float32 of integers [N, K].
    """
    order = products.diagonal().argsort(descending=True)
    factor = _inverse_factor(products[order][:, order])
    left = (weight / scale).T[order]  # [K, N], in steps; a column of the weight is contiguous here
    outlier = outliers(left)
    rounded = torch.empty_like(left)
    for start in range(0, len(left), BLOCK):
        end = min(start + BLOCK, len(left))
        errors = torch.empty_like(left[start:end])
        for i in range(start, end):
            rounded[i] = round_within(left[i], outlier[i])
            errors[i - start] = (left[i] - rounded[i]) / factor[i, i]
            left[i:end].addr_(factor[i, i:end], errors[i - start], alpha=-1)
        left[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    return rounded[order.argsort()].T.contiguous()


def _inverse_factor(products: Tensor) -> Tensor:
    """The upper factor U of the damped products' inverse, U^T . U: float32 [K, K].

    With rows and columns reversed, Cholesky's factor of the products themselves is upper, and its
    inverse is U.
    """
    damped = products.double()
    diagonal = damped.diagonal()
    diagonal += DAMPING * diagonal.mean() + torch.finfo(torch.float32).tiny
    upper = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)
    unit = torch.eye(len(upper), dtype=upper.dtype)
    return torch.linalg.solve_triangular(upper, unit, upper=True).float()
