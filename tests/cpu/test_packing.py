# SPDX-License-Identifier: Apache-2.0
"""The form that a weight is packed in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from vllm_glm41v_npu.cpu.kernels import pack_weight


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16])
def default_dtype(request: pytest.FixtureRequest) -> Iterator[None]:
    """vLLM sets the network's dtype as torch's default while it loads."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize(("outliers", "form"), [(0.02, "int4"), (0.04, "int8")])
def test_the_form_is_that_of_the_weight(default_dtype: None, outliers: float, form: str) -> None:
    """Guards against counting in float16, where millions of outliers are as few as infinity."""
    weight = torch.ones(1024, 4096, dtype=torch.int8)
    weight.view(-1)[: int(outliers * weight.numel())] = 100
    assert pack_weight(weight).form == form
