# SPDX-License-Identifier: Apache-2.0
"""The memory of a layer's inputs, and the range that follows from it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vllm_glm41v_npu.quant.quantizer.arithmetic import input_scale

ROWS = 2048
"""Tokens that are kept as they are, of the whole calibration set."""

FIRST_TOKENS = 4
"""Kept of every sample: the first tokens of a prompt have by far the largest activations (Sun et
al., "Massive Activations in Large Language Models", 2024)."""

PERCENTILE = 99.99
SHRINK = np.linspace(1.0, 0.3, 36)
"""Parts of the whole range that the mse estimator tries."""

MSE_VALUES = 1 << 19


def choose_rows(length: int, count: int, seed: int) -> Tensor:
    """Choose the tokens of a sample that are kept, about `count`: int64 [kept], ascending."""
    some = np.random.default_rng(seed).choice(length, min(count, length), replace=False)
    return torch.from_numpy(np.union1d(some, np.arange(min(FIRST_TOKENS, length))))


class Observer:
    """The inputs of one group.

    Args:
        with_products: Also sum x^T . x, which error compensation needs.
    """

    def __init__(self, with_products: bool) -> None:
        self.low = torch.tensor(torch.inf)
        self.high = torch.tensor(-torch.inf)
        self.products: Tensor | None = None
        self.tokens = 0
        self._with_products = with_products
        self._rows: list[Tensor] = []

    def see(self, x: Tensor, kept: Tensor) -> None:
        """Take in one sample's inputs, float32 [tokens, K], and keep the rows `kept`."""
        self.low = torch.minimum(self.low, x.amin(0))  # [K]
        self.high = torch.maximum(self.high, x.amax(0))
        self.tokens += len(x)
        self._rows.append(x[kept])
        if self._with_products:
            products = x.T @ x  # [K, K]
            self.products = products if self.products is None else self.products.add_(products)

    @property
    def rows(self) -> Tensor:
        """The kept inputs, float32 [rows, K]."""
        if len(self._rows) > 1:
            self._rows = [torch.cat(self._rows)]
        return self._rows[0]

    def smoothed(self, smooth: Tensor) -> Observer:
        """Return the observer of inputs that are divided by `smooth`, float32 [K] > 0."""
        other = Observer(self._with_products)
        other.low, other.high = self.low / smooth, self.high / smooth
        other.tokens = self.tokens
        other._rows = [self.rows / smooth]
        if self.products is not None:
            other.products = self.products / smooth[:, None] / smooth
        return other


Estimator = Callable[[Observer, torch.dtype], tuple[Tensor, Tensor]]
"""The lowest and highest input that the scale should cover, float32 scalars."""


def minmax(observer: Observer, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the range of all values of all tokens."""
    return observer.low.min(), observer.high.max()


def percentile(observer: Observer, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the range of the kept tokens' values without 0.01% at either end."""
    ends = np.percentile(observer.rows.numpy(), (100 - PERCENTILE, PERCENTILE))
    low, high = torch.from_numpy(ends).float()
    return low, high


def mse(observer: Observer, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The part of the whole range with the least squared rounding and clipping error.

    The error is that of the kept values, or of MSE_VALUES of them.
    """
    low, high = observer.low.min(), observer.high.max()
    values = observer.rows.flatten()
    values = values[:: max(1, len(values) // MSE_VALUES)]
    best, least = (low, high), torch.inf
    for part in SHRINK:
        scale = input_scale(low * part, high * part, dtype)
        error = (scale.restore(scale.quantize(values)) - values).square().sum().item()
        if error < least:
            best, least = (low * part, high * part), error
    return best


ESTIMATORS: dict[str, Estimator] = {"minmax": minmax, "percentile": percentile, "mse": mse}
