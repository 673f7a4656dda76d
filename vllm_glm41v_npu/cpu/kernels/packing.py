# SPDX-License-Identifier: Apache-2.0
"""Storage of an int8 weight for the kernels: as it is, or in 4 bits with a list of outliers.

Nearly all values of a W8A8S weight fit 4 bits. Two are packed into a byte, and the few that do not
fit are kept in full with their places. That takes half the memory, and half the time of a product
with few tokens, which is the time of reading the weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from vllm_glm41v_npu.cpu.kernels.tiles import BLOCK, PAIR

Form = Literal["int8", "int4"]
_SMALLEST, _LARGEST = -8, 7
_MOST_OUTLIERS = 0.03  # share of a weight above which 4 bits are slower than 8
_MOST_PLACES = 2**16  # columns that a uint16 can number
_MOST_COLUMNS = 2**17 - 1  # int32 holds the sum of so many products of at most 2**14


@dataclass(frozen=True)
class PackedWeight:
    """An int8 weight [N, K], ready for the kernels. All tensors are contiguous and on the CPU.

    Attributes:
        values: int8 [N, K]; or uint8 [N, ceil(K / 32) * 16], where byte 16 * i + j of a row holds
            weights 32 * i + j (low 4 bits) and 32 * i + j + 16 (high), and 0 for an outlier.
        in_features: K.
        starts: int32 [N * B + 1] with B = ceil(K / 1024): where the outliers of each 1024 columns
            of each row start. None if there are no outliers, as are the next two.
        columns: int16 [outliers], the bits of a uint16: each outlier's column.
        outliers: int8 [outliers]: each outlier's value.
    """

    values: Tensor
    in_features: int
    starts: Tensor | None = None
    columns: Tensor | None = None
    outliers: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.in_features

    @property
    def form(self) -> Form:
        return "int8" if self.values.dtype == torch.int8 else "int4"

    @property
    def nbytes(self) -> int:
        tensors = (self.values, self.starts, self.columns, self.outliers)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def unpack(self) -> Tensor:
        """Return the weight that was packed, int8 [N, K]; not a copy if the form is int8."""
        if self.form == "int8":
            return self.values
        rows, columns = self.shape
        halves = self.values.view(torch.int8).view(rows, -1, 1, PAIR // 2)
        low = ((halves & 15) ^ 8) - 8
        # [N, pairs, 2, 16] -> [N, columns with the padding]
        weight = torch.cat([low, halves >> 4], dim=2).reshape(rows, -1)[:, :columns].contiguous()
        if self.starts is not None and self.columns is not None and self.outliers is not None:
            blocks = -(-columns // BLOCK)
            block = torch.arange(rows * blocks).repeat_interleave(self.starts.diff().long())
            weight[block // blocks, self.columns.int() & 0xFFFF] = self.outliers
        return weight


def pack_weight(weight: Tensor, form: Form | None = None) -> PackedWeight:
    """Pack an int8 weight [N, K], once after loading.

    Args:
        weight: int8 [N, K]; not copied if it is contiguous and the form is int8.
        form: The form; None for "int4" if at most 3 in 100 weights are outside [-8, 7].

    Raises:
        TypeError: The weight is not int8.
        ValueError: It is not a matrix, is empty, or has too many columns for int32 or the form.
    """
    if weight.dtype != torch.int8:
        raise TypeError(
            f"The weight is {weight.dtype}; expected torch.int8. Quantize it before packing it."
        )
    if weight.dim() != 2 or not weight.numel() or weight.shape[1] > _MOST_COLUMNS:
        raise ValueError(
            f"The weight has shape {list(weight.shape)}; expected [N, K] with N at least 1 and K "
            f"from 1 to {_MOST_COLUMNS}, so that int32 holds every sum."
        )
    if form == "int4" and weight.shape[1] > _MOST_PLACES:
        raise ValueError(
            f"The weight has {weight.shape[1]} columns; at most {_MOST_PLACES} can be packed in 4 "
            "bits. Leave the form open."
        )
    # One comparison as unsigned numbers is enough: int8 wraps, so smaller values become large.
    outside = (weight - _SMALLEST).view(torch.uint8) > _LARGEST - _SMALLEST
    if form is None:
        few = int(torch.count_nonzero(outside)) <= _MOST_OUTLIERS * weight.numel()
        form = "int4" if few and weight.shape[1] <= _MOST_PLACES else "int8"
    if form == "int8":
        return PackedWeight(weight.contiguous(), weight.shape[1])
    return _pack_nibbles(weight, outside)


def _pack_nibbles(weight: Tensor, outside: Tensor) -> PackedWeight:
    rows, columns = weight.shape
    small = pad(weight.masked_fill(outside, 0), (0, -columns % PAIR))
    low, high = small.view(rows, -1, 2, PAIR // 2).unbind(2)  # each [N, pairs, 16]
    values = ((low & 15) | (high << 4)).view(torch.uint8).reshape(rows, -1)
    row, column = outside.nonzero(as_tuple=True)
    if not len(row):
        return PackedWeight(values, columns)
    blocks = -(-columns // BLOCK)
    counts = torch.bincount(row * blocks + column // BLOCK, minlength=rows * blocks)
    starts = pad(counts.cumsum(0), (1, 0)).int()
    return PackedWeight(values, columns, starts, column.short(), weight[row, column])
