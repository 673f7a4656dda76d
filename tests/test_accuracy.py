# SPDX-License-Identifier: Apache-2.0
"""The trained tiny checkpoint reads pictures and clips it has never seen, through vLLM."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from vllm import LLM, SamplingParams

from tests.checkpoints import TINY
from tests.engines import engine
from tools.tiny.evaluate import MAX_NEW_TOKENS, Reader, final_answer, heldout_sets, heldout_videos
from tools.tiny.number_clips import NumberClip
from vllm_glm41v_npu.cli.ask import conversation

COUNT = int(os.environ.get("HELD_OUT", "100"))
"""Pictures of each kind; `make accuracy` asks about all 300."""
CLIPS = COUNT * 2 // 3
LEAST_VIDEO = 0.92
LEAST = {"written numbers": 0.97, "handwritten digits": 0.92, "three pictures": 0.5}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    options = {"limit_mm_per_prompt": {"image": 3, "video": 1}}
    with engine(TINY, max_num_seqs=32, max_num_batched_tokens=4096, **options) as started:
        yield started


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(TINY)


@pytest.mark.parametrize("kind", LEAST)
def test_held_out_accuracy(llm: LLM, reader: Reader, kind: str) -> None:
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
    assert replies == list(reader.ask_all(requests))


def test_held_out_video_accuracy(llm: LLM, reader: Reader) -> None:
    """Guards time: which number comes first, which last, and which at a second.

    Every reply is that of transformers, right or wrong.
    """
    examples = heldout_videos(CLIPS)

    def prompt(question: str, clip: NumberClip) -> dict[str, Any]:
        video = clip.frames, {"fps": clip.fps, "duration": clip.seconds}
        return {
            "prompt": reader.prompt(question, ["video"]),
            "multi_modal_data": {"video": video},
        }

    prompts: list[Any] = [prompt(question, clip) for question, clip, _ in examples]
    params = SamplingParams(temperature=0, max_tokens=MAX_NEW_TOKENS)
    replies = [output.outputs[0].text for output in llm.generate(prompts, params, use_tqdm=False)]
    right = sum(
        final_answer(reply) == want for reply, (_, _, want) in zip(replies, examples, strict=True)
    )
    print(f"videos: {right} of {len(examples)} right ({right / len(examples):.1%})")
    assert right / len(examples) >= LEAST_VIDEO
    asked = [(question, clip.frames, clip.fps) for question, clip, _ in examples]
    assert replies == list(reader.ask_all_videos(asked))
