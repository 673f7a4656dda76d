# SPDX-License-Identifier: Apache-2.0
"""From a float checkpoint to msModelSlim's W8A8, W8A8_DYNAMIC or W8A8S, a block at a time."""

from .plan import TYPES, W8A8, W8A8_DYNAMIC, W8A8S, QuantiserError
from .quantise import Request, quantise
from .report import Report
from .scheme import Settings

__all__ = [
    "TYPES",
    "W8A8",
    "W8A8S",
    "W8A8_DYNAMIC",
    "QuantiserError",
    "Report",
    "Request",
    "Settings",
    "quantise",
]
