# SPDX-License-Identifier: Apache-2.0
"""Parallel decoding: guesses come true, and no answer changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.cases import CASES, QUESTION
from tests.engines import Oracle, accepted, ask, check, engine
from tests.lane import ALL_LANES
from vllm_glm41v_npu.cli.ask import conversation
from vllm_glm41v_npu.decoding.settings import speculative_config

pytestmark = ALL_LANES

KINDS = ("ngram", "memory")  # suffix needs a package that no environment has
NAMES = ("text", "one-picture", "long-with-pictures", "two-videos")
REPEATING = conversation([], QUESTION + " 12 34 56" * 20)


@pytest.fixture(scope="module")
def oracle(checkpoint: Callable[[str], Path]) -> Oracle:
    return Oracle(checkpoint("tiny"))


@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_changes(kind: str, oracle: Oracle) -> None:
    """Guards guesses with pictures and videos, in a batch in which some wait for their prompt."""
    config = speculative_config(kind)
    requests = [*(CASES[name] for name in NAMES), REPEATING]
    with engine(oracle.path, speculative_config=config, disable_log_stats=False) as llm:
        outputs = ask(llm, requests)
        assert accepted(llm) > 0
    for output, messages in zip(outputs, requests, strict=True):
        check(output, messages, oracle)
