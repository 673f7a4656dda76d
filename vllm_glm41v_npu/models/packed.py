# SPDX-License-Identifier: Apache-2.0
"""Where the output channels of a quantized layer are in its tensors, and how to reorder them.

The rows of q and k change their order at load (`rope.deinterleave`), and so must everything that
has an entry for each of them: along another axis in AWQ and GPTQ, and eight or four of them in
one int32.

Sources: the layouts of compressed-tensors (pack-quantized), AutoAWQ (gemm) and GPTQModel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

ROWS = (
    "weight", "bias", "weight_packed", "weight_scale", "weight_zero_point", "weight_offset",
    "weight_scale_inv", "deq_scale", "quant_bias",
)  # fmt: skip
"""Tensors whose first axis is that of the output channels."""

COLUMNS = ("qweight", "qzeros", "scales")
"""Tensors of AWQ and GPTQ, whose last axis is that of the output channels."""

OF_INPUTS = ("weight_shape", "weight_g_idx", "g_idx")
"""Tensors that say nothing of an output channel."""

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which channel of eight each four bits of an int32 hold, the lowest first."""

Reorder = Callable[[torch.Tensor], torch.Tensor]


class LayoutError(ValueError):
    """It is not known where the output channels of a tensor are."""


def reorder_channels(
    suffix: str,
    tensor: torch.Tensor,
    channels: int,
    within: int,
    reorder: Reorder,
    awq: bool = False,
) -> torch.Tensor:
    """A tensor of a layer whose output channels are reordered.

    Args:
        suffix: The last part of the tensor's name.
        tensor: As on disk.
        channels: The layer's output channels.
        within: Channels of a head; none leaves its own.
        reorder: From channels along the first axis to the new order.
        awq: The int32s hold their channels in AWQ's order.

    Raises:
        LayoutError: The layout is of no known kind.
    """
    if tensor.numel() == 1 or suffix in OF_INPUTS:
        return tensor  # one for the whole layer
    if suffix not in (*ROWS, *COLUMNS):
        raise LayoutError
    axis = 0 if suffix in ROWS else -1
    entries = tensor.shape[axis]
    if entries == channels:
        return reorder(tensor.transpose(0, axis)).transpose(0, axis).contiguous()
    if entries == 0 or channels % entries:
        raise LayoutError
    each = channels // entries
    if "scale" in suffix and each % within == 0:
        return tensor  # one for whole heads, as blocks of FP8 have
    if tensor.dtype != torch.int32 or each not in (4, 8):
        raise LayoutError
    order = AWQ_ORDER if awq and each == 8 else tuple(range(each))
    packed = tensor.transpose(0, axis)
    return _pack(reorder(_unpack(packed, order)), order).transpose(0, axis).contiguous()


def _unpack(packed: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """int32 [n, ...] to one entry for each channel, int32 [n * len(order), ...]."""
    bits = 32 // len(order)
    parts = [(packed >> (bits * place)) & ((1 << bits) - 1) for place in range(len(order))]
    by_channel = [parts[order.index(channel)] for channel in range(len(order))]
    return torch.stack(by_channel, 1).flatten(0, 1)


def _pack(values: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """The inverse of `_unpack`."""
    bits = 32 // len(order)
    groups = values.unflatten(0, (-1, len(order)))
    packed = torch.zeros_like(groups[:, 0])
    for place, channel in enumerate(order):
        packed |= groups[:, channel] << (bits * place)
    return packed
