# SPDX-License-Identifier: Apache-2.0
"""The trained tiny checkpoint still reads what it read, once it is quantized."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from vllm import SamplingParams

from tests.checkpoints import TINY
from tests.engines import engine
from tools.tiny.evaluate import MAX_NEW_TOKENS, final_answer, heldout_sets
from vllm_glm41v_npu.cli.ask import conversation
from vllm_glm41v_npu.quant.quantizer import Request
from vllm_glm41v_npu.quant.quantizer import quantize as quantize

COUNT = 100
FALL = {"W8A8": 1, "W8A8_DYNAMIC": 1, "W8A8S": 2}
"""How many percent fewer may be right."""

Examples = list[tuple[str, list, str]]


def right(folder: Path, examples: Examples) -> int:
    """How many of the examples the checkpoint answers as it should, through vLLM."""
    # vLLM would compile its sampler for half a minute.
    with (
        torch._dynamo.config.patch(disable=True),
        engine(folder, dtype="float32", max_num_seqs=32, max_num_batched_tokens=4096) as llm,
    ):
        outputs = llm.chat(
            [conversation(pictures, question) for question, pictures, _ in examples],
            SamplingParams(temperature=0, max_tokens=MAX_NEW_TOKENS),
            use_tqdm=False,
        )
    replies = [output.outputs[0].text for output in outputs]
    return sum(final_answer(r) == want for r, (_, _, want) in zip(replies, examples, strict=True))


@pytest.fixture(scope="module")
def examples() -> Examples:
    return heldout_sets(COUNT)["written numbers"]


@pytest.fixture(scope="module")
def float_right(examples: Examples) -> int:
    return right(TINY, examples)


@pytest.mark.parametrize("kind", FALL)
def test_held_out_accuracy_after_quantization(kind, tmp_path, examples, float_right):
    """Guards the whole way from a float checkpoint, by the defaults, to answers in the engine."""
    quantize(Request(TINY, tmp_path / kind, kind))
    after = right(tmp_path / kind, examples)
    print(f"{kind}: {after} of {len(examples)} right, {float_right} before")
    assert after >= float_right - FALL[kind] * len(examples) / 100
