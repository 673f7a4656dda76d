# SPDX-License-Identifier: Apache-2.0
"""The reasoning parser in the engine: grammars, and a budget of tokens for the thinking."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from vllm import LLM, SamplingParams
from vllm.sampling_params import BeamSearchParams, StructuredOutputsParams

from tests.checkpoints import TINY
from tests.engines import accepted, engine
from tests.lane import ON_CPU
from vllm_glm41v_npu.decoding.settings import speculative_config
from vllm_glm41v_npu.serving.thinking import split

pytestmark = pytest.mark.cpu

# Not a schema: that allows white space, of which the tiny model writes no end.
JSON = StructuredOutputsParams(regex=r'\{"number": "[0-9]{4}"\}')


@pytest.fixture(scope="module")
def llm(checkpoint) -> Iterator[LLM]:
    with engine(checkpoint("tiny"), reasoning_parser="glm41v") as running:
        yield running


@pytest.fixture(scope="module")
def guessing(checkpoint) -> Iterator[LLM]:
    guesses = {"speculative_config": speculative_config("memory"), "disable_log_stats": False}
    with engine(checkpoint("tiny"), reasoning_parser="glm41v", **guesses) as running:
        yield running


def answer(llm: LLM, begun: str = "", **options: Any) -> str:
    """What the model writes about a picture of 6021; its turn may have begun."""
    picture = {
        "type": "image_pil",
        "image_pil": Image.open(TINY.parent / "pictures" / "printed.png"),
    }
    question = {"type": "text", "text": "What number is written in the picture?"}
    messages: list[Any] = [{"role": "user", "content": [picture, question]}]
    if begun:
        messages.append({"role": "assistant", "content": begun})
    parameters = SamplingParams(temperature=0, max_tokens=60, **options)
    output = llm.chat(
        messages,
        parameters,
        use_tqdm=False,
        add_generation_prompt=not begun,
        continue_final_message=bool(begun),
    )
    return output[0].outputs[0].text


def test_thinking_switched_off(llm: LLM) -> None:
    """Guards the switch offline: the prompt that a closed thinking begun by hand makes."""
    question: list[Any] = [{"role": "user", "content": "What?"}]
    begun = [*question, {"role": "assistant", "content": "<think></think><answer>"}]
    parameters = SamplingParams(temperature=0, max_tokens=1)
    (by_hand,) = llm.chat(
        begun,
        parameters,
        use_tqdm=False,
        add_generation_prompt=False,
        continue_final_message=True,
    )
    for kwargs in ({"enable_thinking": False}, {"thinking": {"type": "disabled"}}):
        (off,) = llm.chat(question, parameters, use_tqdm=False, chat_template_kwargs=kwargs)
        assert off.prompt_token_ids == by_hand.prompt_token_ids


def test_beams_end_offline(llm: LLM) -> None:
    """Guards LLM.beam_search: the best beam is the greedy answer, and all of them end."""
    prompt = "[gMASK]<sop><|user|>\nWhat number is written in the picture?<|assistant|>\n"
    (greedy,) = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=60), use_tqdm=False)
    parameters = BeamSearchParams(beam_width=2, max_tokens=60)
    for limit in (None, 1):
        outputs = llm.beam_search([prompt] * 2, parameters, concurrency_limit=limit)
        for output in outputs:
            assert output.sequences[0].text == greedy.outputs[0].text
            assert [beam.finish_reason for beam in output.sequences] == ["stop"] * 2


def test_json_after_free_thinking(llm: LLM) -> None:
    """Guards against a grammar that bends the thinking, or that never starts."""
    free = answer(llm)
    bound = answer(llm, structured_outputs=JSON)
    assert split(bound)[0] == split(free)[0] == "I see the digits 6 0 2 1."
    assert list(json.loads(split(bound)[1])) == ["number"]


def test_json_after_guessed_thinking(guessing: LLM) -> None:
    """Guards a grammar where guesses know how the answer went on after the thinking."""
    free = answer(guessing)
    before = accepted(guessing)
    bound = [answer(guessing, structured_outputs=JSON) for _ in range(2)]
    assert accepted(guessing) > before
    for text in bound:
        assert split(text)[0] == split(free)[0]
        assert list(json.loads(split(text)[1])) == ["number"]


def test_json_at_once_after_thinking_that_the_prompt_closed(llm: LLM) -> None:
    """Guards thinking switched off by a prompt that ends with an empty one."""
    closed = "<think></think>"
    bound = answer(llm, closed, structured_outputs=JSON)
    assert list(json.loads(bound)) == ["number"]


@pytest.mark.skipif(not ON_CPU, reason="vllm-ascend 0.23.0 has no thinking budget")
@pytest.mark.parametrize("budget", [0, 1, 4, 100])
def test_thinking_has_a_budget(llm: LLM, budget: int) -> None:
    """Guards vLLM's thinking_token_budget, which asks the parser for the tags."""
    thinking, _ = split(answer(llm, thinking_token_budget=budget))
    tokenizer = llm.get_tokenizer()
    free = tokenizer.encode("I see the digits 6 0 2 1.", add_special_tokens=False)
    assert tokenizer.encode(thinking, add_special_tokens=False) == free[:budget]
