# SPDX-License-Identifier: Apache-2.0
"""The trained tiny checkpoint reads pictures it has never seen, through vLLM as it should."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from vllm import LLM, SamplingParams

from tests.checkpoints import TINY
from tests.engines import engine
from tools.tiny_evaluate import MAX_NEW_TOKENS, Reader, final_answer, heldout_sets
from vllm_glm41v_npu.cli.ask import conversation

COUNT = 300
LEAST = {"written numbers": 0.97, "handwritten digits": 0.92, "three pictures": 0.5}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with engine(TINY, max_num_seqs=32, max_num_batched_tokens=4096) as started:
        yield started


@pytest.mark.parametrize("kind", LEAST)
def test_held_out_accuracy(llm: LLM, kind: str) -> None:
    """Guards the checkpoint, and everything between a picture file and an answer.

    Fonts, kinds of background and handwritten digits were all held out of the training. Every
    reply is that of transformers, right or wrong.
    """
    examples = heldout_sets(COUNT)[kind]
    outputs = llm.chat(
        [conversation(pictures, question) for question, pictures, _ in examples],
        SamplingParams(temperature=0, max_tokens=MAX_NEW_TOKENS),
        use_tqdm=False,
    )
    replies = [output.outputs[0].text for output in outputs]
    right = sum(
        final_answer(reply) == want for reply, (_, _, want) in zip(replies, examples, strict=True)
    )
    accuracy = right / len(examples)
    print(f"{kind}: {right} of {len(examples)} right ({accuracy:.1%})")
    assert accuracy >= LEAST[kind]
    requests = [(question, pictures) for question, pictures, _ in examples]
    assert replies == list(Reader(TINY).ask_all(requests))
