# SPDX-License-Identifier: Apache-2.0
"""Quantised layers split over two processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines import engine
from tests.quant.cases import OPTIONS, check_logits, generate, write_mixed
from tests.quant.reference import Checkpoint


def test_tensor_parallel_equals_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards sharded scales, fused layers, and a bias that every rank would add, of all types.

    Static layers give what one process gives; of dynamic row-parallel ones, each rank scales its
    own inputs, as vllm-ascend's do. The tower is left in float: its sums are rounded in another
    order by two ranks, and with these random weights one step of int8 moves the answer by 0.2.
    """
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    folder = write_mixed(tmp_path, tower=False)
    with engine(folder, tensor_parallel_size=2, **OPTIONS) as llm:
        outputs = generate(llm)
    check_logits(outputs, Checkpoint(folder), ranks=2)
