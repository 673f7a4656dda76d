# SPDX-License-Identifier: Apache-2.0
"""The proposer between vLLM's rows and the trie."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vllm_glm41v_npu.decoding.proposer import FixedMemoryProposer, MemoryProposer

LENGTH, PICTURE, VIDEO = 64, 500, 501
PROMPT = list(range(10, 30))
OTHER = list(range(40, 60))


def config(tokens: int = 15) -> Any:
    ids = {"image_token_id": PICTURE, "video_token_id": VIDEO}
    return SimpleNamespace(
        speculative_config=SimpleNamespace(num_speculative_tokens=tokens),
        model_config=SimpleNamespace(max_model_len=LENGTH, hf_config=SimpleNamespace(**ids)),
        scheduler_config=SimpleNamespace(max_num_seqs=2),
    )


def step(proposer: MemoryProposer, *requests: tuple[list[int], int]) -> list[list[int]]:
    """Draft tokens after a step, for texts of which so many tokens were sampled in it."""
    texts = np.full((len(requests) + 1, LENGTH), 99, np.int32)  # beyond a text, a row has anything
    for row, (text, _) in enumerate(requests):
        texts[row, : len(text)] = text
    lengths = np.array([len(text) for text, _ in requests] + [0], np.int32)
    sampled = [text[len(text) - new :] for text, new in requests]
    return proposer.propose(sampled, lengths, texts)


@pytest.fixture
def proposer() -> MemoryProposer:
    return FixedMemoryProposer(config())


def seen(proposer: MemoryProposer) -> int:
    return int(proposer.trie.state[1])


def test_prompts_and_answers_of_others(proposer: MemoryProposer) -> None:
    """Guards what is remembered: a request's own prompt, and what any request wrote."""
    assert step(proposer, ([*PROMPT, 10, 11], 1)) == [PROMPT[2:17]]
    step(proposer, ([*PROMPT, 10, 11, 77, 78], 2))
    assert step(proposer, ([*OTHER, 11, 77], 1))[0][:1] == [78]


def test_rows_are_known_again(proposer: MemoryProposer) -> None:
    """Guards against a prompt that counts in every step, and when vLLM moves rows or waits."""
    first, second = [*PROMPT, 1], [*OTHER, 2]
    step(proposer, (first, 1), (second, 1))
    assert seen(proposer) == 42
    first, second = [*first, 3, 4], [*second, 5]
    step(proposer, (second, 1), (first, 2))
    assert seen(proposer) == 45
    step(proposer, (first, 0), ([*second, 6], 1))
    step(proposer, ([*first, 7], 1))
    assert seen(proposer) == 47
    step(proposer, ([*PROMPT, 8], 1))  # the same prompt, asked again
    assert seen(proposer) == 68


def test_a_prompt_that_is_not_through(proposer: MemoryProposer) -> None:
    """Guards the step of a chunk, in which nothing is sampled."""
    assert step(proposer, (PROMPT[:9], 0), ([*OTHER, 40], 1)) == [[], OTHER[1:16]]
    assert seen(proposer) == 21


def test_placeholders_are_no_drafts(proposer: MemoryProposer) -> None:
    """Guards pictures and videos: what follows one in the prompt is not the end of the text."""
    prompt = [5, 6, *[PICTURE] * 9, 7, 8, *[VIDEO] * 9, 9]
    assert step(proposer, ([*prompt, 6], 1)) == [[]]
    assert step(proposer, ([*prompt, 6, 7], 1)) == [[8]]


def test_no_draft_beyond_the_longest_text(proposer: MemoryProposer) -> None:
    """Guards the end: one token is sampled after the last draft token."""
    text = [*range(20), *range(20), *range(20)]
    (drafts,) = step(proposer, ([*text, 0], 1))
    assert len(drafts) == LENGTH - 61 - 1
    assert step(proposer, ([*text, *range(4)], 1)) == [[]]


def test_memory_of_requests_is_bounded(proposer: MemoryProposer) -> None:
    for number in range(50):
        step(proposer, ([*PROMPT, number], 1))
    assert len(proposer._known) == 8


def test_dynamic_drafts_are_shorter() -> None:
    """Guards that doubt ends a draft, and sooner where more requests share the step."""
    dynamic = MemoryProposer(config())
    assert step(dynamic, ([*PROMPT, 10, 11], 1)) == [
        [12, 13]
    ]  # each right by chances of a half, as long as nothing is learnt
    prompts = [list(range(start, start + 20)) for start in range(100, 200, 20)]
    drafts = step(MemoryProposer(config()), *[([*p, *p[:2]], 1) for p in prompts])
    assert drafts == [[p[2]] for p in prompts]


def test_too_many_tokens() -> None:
    with pytest.raises(ValueError, match="is 16; expected 1 to 15"):
        MemoryProposer(config(16))
