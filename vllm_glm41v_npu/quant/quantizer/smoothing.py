# SPDX-License-Identifier: Apache-2.0
"""Outliers of the inputs moved into the weights, by way of the norm before them.

Dividing a norm's weight by a scale per channel and multiplying the columns of the layers behind it
changes nothing, but both can be rounded better. With `s = max(abs(x))^a / max(abs(w))^(1 - a)` it
is SmoothQuant (Xiao et al., 2023), which msModelSlim's m2 is a form of; searching for `a` by the
error of the output is AWQ's way (Lin et al., 2024). No norm gets a bias.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import linear

from vllm_glm41v_npu.quant.quantizer.observers import Observer
from vllm_glm41v_npu.quant.quantizer.scheme import Settings, evenly, quantize_group, relative_error

ALPHAS = (0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SEARCH_ROWS = 256
SEARCH_OUTPUTS = 2048
"""Inputs and outputs on which the search compares, at most."""

LEAST_PART = 1e-4
"""Channels smaller than this part of the largest count as this large."""

Folded = tuple[Tensor, Tensor]
"""The norm's weight in the model's dtype, and by what the inputs were thereby divided, float32."""


def smooth(
    norm: Tensor, weights: list[Tensor], observer: Observer, settings: Settings
) -> tuple[Folded, float | None]:
    """The best scales for a norm, and the alpha they came from; None where none helps.

    Args:
        norm: Its weight, float32 [K].
        weights: The layers behind it, float32 [N, K] each.
        observer: What they were given.
        settings: With a fixed alpha nothing is searched.
    """
    inputs = torch.maximum(observer.high, -observer.low)
    columns = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    if settings.alpha is not None:
        scale = scales(inputs, columns, settings.alpha)
        return fold(norm, scale, settings.dtype), settings.alpha
    # Compensation is the same for all, and slow.
    quick = replace(settings, compensate=False)
    some = [evenly(weight, SEARCH_OUTPUTS) for weight in weights]
    wanted = [linear(evenly(observer.rows, SEARCH_ROWS), weight) for weight in some]
    best, chosen = fold(norm, torch.ones_like(norm), settings.dtype), None
    least = _error(best, some, wanted, observer, quick)
    for alpha in ALPHAS:
        folded = fold(norm, scales(inputs, columns, alpha), settings.dtype)
        error = _error(folded, some, wanted, observer, quick)
        if error < least:
            best, chosen, least = folded, alpha, error
    return best, chosen


def scales(inputs: Tensor, columns: Tensor, alpha: float) -> Tensor:
    """SmoothQuant's scale of each channel, with a geometric mean of 1.

    Args:
        inputs: max(abs(x)) of each channel, float32 [K].
        columns: max(abs(w)) of each column, float32 [K].
        alpha: From 0 to 1.
    """
    logarithm = alpha * _log(inputs) - (1 - alpha) * _log(columns)
    return (logarithm - logarithm.mean()).exp()


def fold(norm: Tensor, scale: Tensor, dtype: torch.dtype) -> Folded:
    """Divide a norm's weight by `scale`; what rounding it to `dtype` changes goes to the scale."""
    divided = (norm / scale).to(dtype)
    usable = (divided != 0) & divided.isfinite() & (norm != 0)
    divided = torch.where(usable, divided, norm.to(dtype))
    exact = torch.where(usable, norm / divided.float(), torch.ones_like(norm))
    return divided, exact


def _error(
    folded: Folded,
    weights: list[Tensor],
    wanted: list[Tensor],
    observer: Observer,
    settings: Settings,
) -> float:
    scale = folded[1]
    seen = observer.smoothed(scale)
    rows = evenly(seen.rows, SEARCH_ROWS)
    layers = quantize_group([weight * scale for weight in weights], seen, settings)
    got = [layer.output(rows) for layer in layers]
    return relative_error(torch.cat(wanted, 1), torch.cat(got, 1))


def _log(sizes: Tensor) -> Tensor:
    largest = sizes.amax()
    floor = LEAST_PART * largest if largest > 0 else torch.ones_like(largest)
    return sizes.clamp(min=floor).log()
