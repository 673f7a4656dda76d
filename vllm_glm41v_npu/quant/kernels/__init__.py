# SPDX-License-Identifier: Apache-2.0
"""Linear layers in int8 on the CPU, exact to the last bit and as fast as memory for one token."""

from .activations import quantize_per_token, quantize_static
from .ops import int8_linear, int8_matmul
from .packing import PackedWeight, pack_weight

__all__ = [
    "PackedWeight",
    "int8_linear",
    "int8_matmul",
    "pack_weight",
    "quantize_per_token",
    "quantize_static",
]
