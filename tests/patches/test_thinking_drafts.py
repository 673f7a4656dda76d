# SPDX-License-Identifier: Apache-2.0
"""Draft tokens of a request with a grammar end where its thinking does, in both of vLLM's ways."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.core.sched.scheduler import Scheduler as VLLMScheduler
from vllm.v1.structured_output import StructuredOutputManager

from vllm_glm41v_npu.patches import thinking_drafts

END = 9
GLM = SimpleNamespace(hf_config=SimpleNamespace(model_type="glm4v"))


class Known:
    """The part of vLLM's scheduler that takes draft tokens, which it remembers."""

    def __init__(self, **requests: Any) -> None:
        self.requests = requests
        self.vllm_config = SimpleNamespace(model_config=GLM)
        self.structured_output_manager = SimpleNamespace(
            enable_in_reasoning=False, _get_reasoner=lambda request: request.parser
        )
        self.taken: list[Any] = []

    def update_draft_token_ids(self, drafts: Any) -> None:
        self.taken += drafts.draft_token_ids

    def update_draft_token_ids_in_output(self, drafts: Any, scheduled: Any) -> None:
        assert scheduled == "a step"
        self.taken += drafts.draft_token_ids


class Parser:
    """A reasoning parser whose thinking ends at `ends`."""

    def __init__(self, *ends: int) -> None:
        self.ends = list(ends)

    def is_reasoning_end_streaming(self, text: list[int], delta: list[int]) -> bool:
        """Whether the end is among the new tokens, also with its beginning before them."""
        assert text[len(text) - len(delta) :] == list(delta)
        last = range(len(text) - len(delta) + 1, len(text) + 1)
        return len(delta) >= len(self.ends) and any(
            text[max(stop - len(self.ends), 0) : stop] == self.ends for stop in last
        )


def request(*, grammar: bool = True, ended: bool = False, parser: Any = None) -> Any:
    return SimpleNamespace(
        use_structured_output=grammar,
        structured_output_request=SimpleNamespace(reasoning_ended=ended),
        all_token_ids=[1, 2],
        parser=parser,
    )


THINKS = Parser(END)
CASES = {
    "the end among them": (request(parser=THINKS), [3, 4, END, 5], [3, 4]),
    "the end first": (request(parser=THINKS), [END, 5], []),
    "the end last": (request(parser=THINKS), [3, END], [3]),
    "two ends": (request(parser=THINKS), [3, END, 4, END], [3]),
    "no end": (request(parser=THINKS), [3, 4], [3, 4]),
    "an end of two tokens": (request(parser=Parser(8, END)), [3, 8, END, 5], []),
    "thinking that is over": (request(parser=THINKS, ended=True), [3, END, 5], [3, END, 5]),
    "no grammar": (request(parser=THINKS, grammar=False), [3, END, 5], [3, END, 5]),
    "no parser": (request(), [3, END, 5], [3, END, 5]),
}


@pytest.mark.parametrize("in_output", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_where_they_end(case: str, in_output: bool) -> None:
    """Guards tokens behind the thinking that no grammar has bound, also of steps that overlap."""
    asked, tokens, kept = CASES[case]
    scheduler = thinking_drafts._drafting_within_thinking(Known)(a=asked, b=request())
    drafts = SimpleNamespace(req_ids=["a", "gone", "b"], draft_token_ids=[tokens[:], [7], [6]])
    if in_output:
        scheduler.update_draft_token_ids_in_output(drafts, "a step")
    else:
        scheduler.update_draft_token_ids(drafts)
    assert scheduler.taken == [kept, [7], [6]]


def test_a_grammar_that_binds_the_thinking() -> None:
    """Guards servers that let the grammar begin with the thinking: nothing is cut there."""
    scheduler = thinking_drafts._drafting_within_thinking(Known)(a=request(parser=THINKS))
    scheduler.structured_output_manager.enable_in_reasoning = True
    scheduler.update_draft_token_ids(SimpleNamespace(req_ids=["a"], draft_token_ids=[[3, END, 5]]))
    assert scheduler.taken == [[3, END, 5]]


def test_vllm_cuts_nothing() -> None:
    """Guards the patch: it can go when vLLM asks the parser at every draft token."""
    for name in ("update_draft_token_ids", "update_draft_token_ids_in_output"):
        assert "is_reasoning_end" not in inspect.getsource(getattr(VLLMScheduler, name))
    assert "is_reasoning_end" not in inspect.getsource(StructuredOutputManager.grammar_bitmask)
