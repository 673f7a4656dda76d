# SPDX-License-Identifier: Apache-2.0
"""Several processes give the tokens of one: tensor, pipeline and encoder data parallelism."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import SHAPES, TINY, write_checkpoint
from tests.end_to_end.cases import CASES
from tests.engines import Oracle, ask, check_equal, engine

NAMES = ("text", "one-picture", "three-pictures", "long-with-pictures")

TP = {"tensor_parallel_size": 2}
PP = {"pipeline_parallel_size": 2}
ENCODER_DP = TP | {"mm_encoder_tp_mode": "data"}


@pytest.mark.parametrize(
    ("model", "options"),
    [
        pytest.param("tiny", TP, id="tensor"),
        pytest.param("wide-heads", TP, id="tensor-one-kv-head"),
        pytest.param("tiny", PP, id="pipeline"),
        # Three vision heads cannot be split in two; whole pictures can.
        pytest.param("many-kv", ENCODER_DP, id="encoder-data"),
    ],
)
def test_two_processes_equal_transformers(
    model: str, options: dict[str, Any], tmp_path: Path, monkeypatch
) -> None:
    """Guards the sharded loading, the split of heads and pictures, and the stages' hand-over."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    path = TINY
    if model != "tiny":
        path = write_checkpoint(next(s for s in SHAPES if s.name == model), tmp_path)
    oracle = Oracle(path)
    with engine(path, **options) as llm:
        outputs = ask(llm, [CASES[name] for name in NAMES])
        # Alone, so that with whole pictures to a rank, one rank has none.
        outputs += ask(llm, [CASES["one-picture"]])
    for output, name in zip(outputs, (*NAMES, "one-picture"), strict=True):
        check_equal(output, oracle.answer(CASES[name]))
