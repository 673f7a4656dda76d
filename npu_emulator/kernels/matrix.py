# SPDX-License-Identifier: Apache-2.0
"""Matrix products that are not aten's."""

from __future__ import annotations

from torch import Tensor

from npu_emulator.kernels.registry import kernel


@kernel("atb::_npu_matmul_add_fp32")
def matmul_add_fp32(x: Tensor, weight: Tensor, C: Tensor) -> None:
    """C += x^T @ weight, IN PLACE.

    op-plugin 26.0.0: op_plugin/ops/atb/LinearAtb.cpp (transposeA, enAccum)
    """
    C.addmm_(x.float().t(), weight.float())
