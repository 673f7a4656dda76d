# SPDX-License-Identifier: Apache-2.0
"""A hundred requests with parallel decoding and without: the same answers, some of them drafted.

Blocks of some prompts come from the prefix cache, which is on unless it is left off.
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from vllm import RequestOutput, SamplingParams

from tests.checkpoints import TINY
from tests.end_to_end.cases import FIRST, PICTURES, QUESTION, VIDEOS, long_text
from tests.engines import Message, accepted, engine, tokens
from vllm_glm41v_npu.cli.ask import conversation
from vllm_glm41v_npu.decoding.settings import speculative_config

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=2)
CLOSE = 1e-3
"""Largest difference of log-probabilities: a step of several tokens adds in another order."""


def requests() -> list[list[Message]]:
    """Text, pictures and videos in turn; some are asked again."""
    asked = []
    for number in range(25):
        # More than a block of the cache, which is 128 tokens on a CPU.
        picture, seed = PICTURES[number % len(PICTURES)], long_text(130 + number)
        asked += [
            conversation([], f"{QUESTION} {seed}"),
            conversation([picture], QUESTION),
            conversation([picture], f"{seed} {QUESTION}"),
            conversation([VIDEOS[number % 2]], FIRST),
        ]
    return asked


def answers(kind: str | None) -> tuple[list[RequestOutput], int]:
    """Return the tiny model's answers, and how many draft tokens were right."""
    config = speculative_config(kind)
    with engine(TINY, speculative_config=config, disable_log_stats=False) as llm:
        return llm.chat(requests(), GREEDY, use_tqdm=False), accepted(llm) if kind else 0


def logprobs(output: RequestOutput) -> list[float]:
    """Return the log-probabilities of the answer's tokens."""
    steps = output.outputs[0].logprobs
    assert steps is not None
    return [step[token].logprob for step, token in zip(steps, tokens(output), strict=True)]


@pytest.fixture(scope="module")
def plain() -> list[RequestOutput]:
    return answers(None)[0]


NEEDS_ARCTIC = pytest.mark.skipif(
    find_spec("arctic_inference") is None,
    reason="needs arctic-inference, which `make test-suffix` builds",
)


@pytest.mark.parametrize("kind", ["ngram", "memory", pytest.param("suffix", marks=NEEDS_ARCTIC)])
def test_a_hundred_requests(kind: str, plain: list[RequestOutput]) -> None:
    """Guards every token and its log-probability, with blocks of the prefix cache too."""
    outputs, right = answers(kind)
    assert right > 0
    assert sum(output.num_cached_tokens or 0 for output in outputs) > 0
    for ours, theirs in zip(outputs, plain, strict=True):
        assert tokens(ours) == tokens(theirs)
        for one, other in zip(logprobs(ours), logprobs(theirs), strict=True):
            assert one == pytest.approx(other, abs=CLOSE)
