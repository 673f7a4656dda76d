# SPDX-License-Identifier: Apache-2.0
"""The report: the effect of quantization on each layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

REPORT = "quantization_report.json"


@dataclass(frozen=True)
class LayerReport:
    """One linear layer.

    Attributes:
        name: Its name in the checkpoint.
        error: norm(quantized output - float output) / norm(float output), without bias, on the
            calibration set's own tokens.
        low: The lowest input of the calibration set, after smoothing.
        high: The highest.
        input_scale: The static one, or None.
        input_offset: Likewise.
        clipped: The share of inputs outside the static range.
        alpha: Of the smoothing, or None where the input was not smoothed.
        outliers: The share of weights that do not fit 4 bits.
    """

    name: str
    error: float
    low: float
    high: float
    input_scale: float | None
    input_offset: int | None
    clipped: float
    alpha: float | None
    outliers: float


@dataclass(frozen=True)
class Report:
    """The whole checkpoint.

    Attributes:
        type: W8A8, W8A8_DYNAMIC or W8A8S.
        dtype: What it runs in.
        samples: Conversations of the calibration set.
        tokens: Their tokens.
        unreadable: Files of the calibration set that could not be read.
        layers: Every quantized layer.
        options: What was asked for.
    """

    type: str
    dtype: str
    samples: int
    tokens: int
    unreadable: tuple[str, ...]
    layers: tuple[LayerReport, ...]
    options: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
