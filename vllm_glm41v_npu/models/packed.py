# SPDX-License-Identifier: Apache-2.0
"""Reorders the output channels of a quantized layer in each of its tensors.

The rows of q and k change their order at load (`rope.deinterleave`), and so must everything that
has an entry for each of them: along another axis in AWQ and GPTQ, and eight or four of them in
one int32.

Sources: the layouts of compressed-tensors (pack-quantized), AutoAWQ (gemm) and GPTQModel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from vllm_glm41v_npu.checkpoint.names import COLUMNS, OF_INPUTS, ROWS

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The channel of eight that each four bits of an int32 hold, the lowest first."""

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
    """Return a tensor of a layer with its output channels in another order.

    Args:
        suffix: The last part of the tensor's name.
        tensor: As on disk.
        channels: The layer's output channels.
        within: Channels of a head; every channel stays in its own head.
        reorder: Puts channels along the first axis into the new order.
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
    """Return one entry for each channel: int32 [n, ...] to int32 [n * len(order), ...]."""
    bits = 32 // len(order)
    parts = [(packed >> (bits * place)) & ((1 << bits) - 1) for place in range(len(order))]
    by_channel = [parts[order.index(channel)] for channel in range(len(order))]
    return torch.stack(by_channel, 1).flatten(0, 1)


def _pack(values: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """Return what `_unpack` was given: its inverse."""
    bits = 32 // len(order)
    groups = values.unflatten(0, (-1, len(order)))
    packed = torch.zeros_like(groups[:, 0])
    for place, channel in enumerate(order):
        packed |= groups[:, channel] << (bits * place)
    return packed
