# SPDX-License-Identifier: Apache-2.0
"""Products of parts, for many tokens: exact over several chunks of columns and tasks of rows.

Every other shape and kind of data is in `test_kernels.py`, whose fixture `way` has them too.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vllm_glm41v_npu.cpu.kernels import int8_matmul, ops, pack_weight

COLUMNS, TOKENS = 9001, 600  # three chunks of columns that end inside blocks, two of tokens


def random(rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randint(-128, 128, (rows, COLUMNS), generator=generator, dtype=torch.int8)


@pytest.mark.parametrize("form", ("int8", "int4"))
@pytest.mark.parametrize("threads", (1, 2))
def test_many_tokens_are_multiplied_in_parts(
    form: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every bit is right, and tiles alone did not do it."""
    monkeypatch.setattr(ops, "multiplies_in_full", lambda: False)
    monkeypatch.delattr(ops, "_multiply")
    weight, x = random(256 * threads + 70), random(TOKENS)
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) > 0.02] //= 16
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        result = int8_matmul(x, pack_weight(weight, form))  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(result.double(), x.double() @ weight.double().t())
