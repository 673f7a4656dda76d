# SPDX-License-Identifier: Apache-2.0
"""Several processes give the tokens of one: tensor, pipeline and encoder data parallelism.

Parallel decoding shares some of their engines.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.cases import CASES
from tests.end_to_end.conftest import read, wait_for_reports
from tests.engines import Oracle, accepted, ask, check, engine
from tests.lane import ALL_LANES, EMULATED, ON_CPU, need_two_devices
from vllm_glm41v_npu.decoding.settings import speculative_config

pytestmark = [*ALL_LANES, pytest.mark.ranks]

NAMES = ("text", "one-picture", "three-pictures", "long-with-pictures", "two-videos")

TP = {"tensor_parallel_size": 2}
MEMORY = {"speculative_config": speculative_config("memory"), "disable_log_stats": False}
NGRAM = {"speculative_config": speculative_config("ngram"), "disable_log_stats": False}
PP = {"pipeline_parallel_size": 2}
ENCODER_DP = TP | {"mm_encoder_tp_mode": "data"}

CPU_RUNS = [
    pytest.param("wide-heads", TP, id="tensor-one-kv-head"),
    pytest.param("tiny", TP | MEMORY, id="tensor-memory"),
    pytest.param("tiny", PP, id="pipeline"),
    # Three vision heads cannot be split in two; whole pictures can.
    pytest.param("many-kv", ENCODER_DP, id="encoder-data"),
]
ASCEND_RUNS = [
    pytest.param("chip-heads", TP | {"enforce_eager": False} | MEMORY, id="tensor-graphs-memory"),
    # One vision head cannot be split in two; whole pictures can.
    pytest.param("chip-deep", ENCODER_DP | NGRAM, id="encoder-data-one-kv-head-ngram"),
]


@pytest.mark.parametrize(("model", "options"), CPU_RUNS if ON_CPU else ASCEND_RUNS)
def test_two_processes_equal_transformers(
    model: str,
    options: dict[str, Any],
    checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    nothing_refused: Path,
) -> None:
    """Guards the sharded loading, the split of heads and pictures, and the stages' hand-over."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    need_two_devices()
    path = checkpoint(model)
    oracle = Oracle(path)
    with engine(path, **options) as llm:
        outputs = ask(llm, [CASES[name] for name in NAMES])
        # Alone, so that with whole pictures to a rank, one rank has none.
        outputs += ask(llm, [CASES["one-picture"]])
        if "speculative_config" in options:
            assert accepted(llm) > 0
        if replays := EMULATED and not options.get("enforce_eager", True):
            wait_for_reports()
    for output, name in zip(outputs, (*NAMES, "one-picture"), strict=True):
        check(output, CASES[name], oracle)
    if replays:
        graphs = [report["graphs"] for report in read(nothing_refused)]
        assert sum(min(counts["captures"], counts["replays"]) > 0 for counts in graphs) == 2
