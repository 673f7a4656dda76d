# SPDX-License-Identifier: Apache-2.0
"""Parallel decoding: guesses come true, and no answer changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

from tests.end_to_end.cases import CASES, QUESTION
from tests.engines import NEW_TOKENS, Oracle, accepted, ask, check, engine, tokens
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
        pieces = stream(llm, list(outputs[-1].prompt_token_ids or []))
    assert max(map(len, pieces)) > 1
    assert sum(pieces, []) == tokens(outputs[-1])
    for output, messages in zip(outputs, requests, strict=True):
        check(output, messages, oracle)


def stream(llm: LLM, prompt_ids: list[int]) -> list[list[int]]:
    """The tokens of each step."""
    delta = RequestOutputKind.DELTA
    params = SamplingParams(
        temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, output_kind=delta
    )
    llm.llm_engine.add_request("streamed", {"prompt_token_ids": prompt_ids}, params)
    pieces = []
    while llm.llm_engine.has_unfinished_requests():
        pieces += [list(output.outputs[0].token_ids) for output in llm.llm_engine.step()]
    return pieces
