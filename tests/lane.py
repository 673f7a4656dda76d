# SPDX-License-Identifier: Apache-2.0
"""What the tests of this run compute on: a CPU, an emulated NPU, or a real one.

Tests marked ALL_LANES run on each, with the dtype and the checkpoints that it takes.
"""

from __future__ import annotations

import os

import pytest

from vllm_glm41v_npu.backends import ON_CPU as CPU_STACK
from vllm_glm41v_npu.backends import current_backend

ALL_LANES = [pytest.mark.cpu, pytest.mark.ascend, pytest.mark.npu]

BACKEND = current_backend()
ON_CPU = BACKEND.stack == CPU_STACK

EMULATED = "NPU_EMULATOR_SOC" in os.environ

DTYPE = "float32" if ON_CPU else "float16"
EXACT = DTYPE == "float32"
"""Every token must be transformers'; otherwise one may differ within rounding."""

OTHER_DTYPES = () if ON_CPU else tuple(dtype for dtype in BACKEND.dtypes if dtype != DTYPE)
"""Of the end-to-end runs in another dtype."""


def need_two_devices() -> None:
    """Skip the test where there is one NPU; a CPU's cores are devices enough."""
    import torch

    if not ON_CPU and torch.npu.device_count() < 2:
        pytest.skip("this machine has one NPU")
