# SPDX-License-Identifier: Apache-2.0
"""Parallel decoding: draft tokens are accepted, and no answer changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from tests.end_to_end.cases import CASES, QUESTION
from tests.end_to_end.mindie import PICTURE
from tests.engines import NEW_TOKENS, Message, Oracle, accepted, ask, check, engine, tokens
from tests.lane import ALL_LANES
from vllm_glm41v_npu.cli.ask import conversation
from vllm_glm41v_npu.decoding.settings import speculative_config
from vllm_glm41v_npu.serving.thinking import split

pytestmark = ALL_LANES

KINDS = ("ngram", "memory")  # suffix needs a package that no environment has
NAMES = ("text", "one-picture", "long-with-pictures", "two-videos")
# Not a schema: that allows white space, which the tiny model would write without end.
JSON = StructuredOutputsParams(regex=r'\{"number": "[0-9]{4}"\}')
REPEATING = conversation([], QUESTION + " 12 34 56" * 20)


@pytest.fixture(scope="module")
def oracle(checkpoint: Callable[[str], Path]) -> Oracle:
    return Oracle(checkpoint("tiny"))


@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_changes(kind: str, oracle: Oracle) -> None:
    """Guards draft tokens for pictures and videos, while other requests are still in prefill."""
    options = {"speculative_config": speculative_config(kind), "disable_log_stats": False}
    requests = [*(CASES[name] for name in NAMES), REPEATING]
    with engine(oracle.path, reasoning_parser="glm41v", **options) as llm:
        outputs = ask(llm, requests)
        assert accepted(llm) > 0
        pieces = stream(llm, list(outputs[-1].prompt_token_ids or []))
        if kind == "memory":
            check_structured_output(llm)
    assert max(map(len, pieces)) > 1
    assert sum(pieces, []) == tokens(outputs[-1])
    for output, messages in zip(outputs, requests, strict=True):
        check(output, messages, oracle)


def check_structured_output(llm: LLM) -> None:
    """Draft tokens may not break a grammar: the memory knows how the free answer went on."""
    question = conversation([Image.open(PICTURE)], QUESTION)
    free = write(llm, question)
    before = accepted(llm)
    bound = [write(llm, question, structured_outputs=JSON) for _ in range(2)]
    assert accepted(llm) > before
    for text in bound:
        assert split(text)[0] == split(free)[0] == "I see the digits 6 0 2 1."
        assert list(json.loads(split(text)[1])) == ["number"]


def write(llm: LLM, messages: list[Message], **options: Any) -> str:
    params = SamplingParams(temperature=0, max_tokens=60, **options)
    return llm.chat(messages, params, use_tqdm=False)[0].outputs[0].text


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
