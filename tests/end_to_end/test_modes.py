# SPDX-License-Identifier: Apache-2.0
"""The engine's modes: compiled and captured graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.cases import CASES
from tests.end_to_end.conftest import read, wait_for_reports
from tests.engines import NEW_TOKENS, Oracle, accepted, ask, check, engine
from tests.lane import ALL_LANES, BACKEND, EMULATED, ON_CPU
from vllm_glm41v_npu.decoding.settings import speculative_config

pytestmark = ALL_LANES

NAMES = ("text", "three-pictures", "long-with-pictures", "two-videos")
DISTINCT_PICTURES = 3
MODES: dict[str, dict[str, Any]] = {
    "default": {"enforce_eager": False},
}
if not ON_CPU:
    MODES["full-decode-only"] = {
        "enforce_eager": False,
        "compilation_config": {"cudagraph_mode": "FULL_DECODE_ONLY"},
    }
    MODES["parallel-decoding"] = MODES["full-decode-only"] | {
        "speculative_config": speculative_config("memory", 3),
        "disable_log_stats": False,
    }
if BACKEND.captures_encoder:
    MODES["encoder-graphs"] = {
        "enforce_eager": False,
        "enable_mm_embeds": False,
        "compilation_config": {
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_mm_encoder": True,
            "encoder_cudagraph_token_budgets": [32, 128],
            "encoder_cudagraph_max_vision_items_per_batch": 2,
        },
    }


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("mode", MODES)
def test_graphs_equal_transformers(
    mode: str,
    checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    nothing_refused: Path,
) -> None:
    """Guards what users get by default, and the graph mode that vllm-ascend names for 310P."""
    if not ON_CPU:
        # vllm-ascend keeps its graphs in the process, and takes no second set.
        monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
        monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # for collective_rpc
    path = checkpoint("tiny")
    oracle = Oracle(path)
    with engine(path, **MODES[mode]) as llm:
        outputs = ask(llm, [CASES[name] for name in NAMES])
        # Again, when only decoding is left to compute for most of the prompt.
        outputs += ask(llm, [CASES[name] for name in NAMES])
        if mode == "encoder-graphs":
            assert llm.collective_rpc(encoder_graph_hits) == [DISTINCT_PICTURES]
        if mode == "parallel-decoding":  # the second time, it remembers the first
            assert accepted(llm) > NEW_TOKENS * len(NAMES) // 2
        if EMULATED:
            wait_for_reports()
    for output, name in zip(outputs, NAMES * 2, strict=True):
        check(output, CASES[name], oracle)
    if EMULATED:
        graphs = [report["graphs"] for report in read(nothing_refused)]
        assert any(counts["captures"] and counts["replays"] for counts in graphs), graphs


def encoder_graph_hits(worker: Any) -> int:
    """How many pictures were encoded by a graph, in the engine's process."""
    return worker.model_runner.encoder_cudagraph_manager.graph_hits
