# SPDX-License-Identifier: Apache-2.0
"""Operators about where and how a tensor lies, which hold no arithmetic."""

from __future__ import annotations

from torch import Tensor

from npu_emulator.kernels.registry import kernel


@kernel("npu::npu_format_cast")
def format_cast(
    input: Tensor,
    acl_format: int,
    *,
    customize_dtype: int | None = None,
    input_dtype: int | None = None,
) -> Tensor:
    """A copy of the input in another memory format: shape and values as seen stay the same.

    Host memory keeps the order it has, so the format is not applied to it.
    op-plugin 26.0.0: docs/zh/custom_APIs/torch_npu/（beta）torch_npu-npu_format_cast.md
    """
    return input.clone()


@kernel("npu::npu_prefetch")
def prefetch(input: Tensor, dependency: Tensor | None, max_size: int, offset: int = 0) -> None:
    """Read-ahead into a cache: no effect on any value.

    op-plugin 26.0.0: docs/zh/custom_APIs/torch_npu/torch_npu-npu_prefetch.md
    """
