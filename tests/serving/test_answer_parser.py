# SPDX-License-Identifier: Apache-2.0
"""One parser for an answer, whole and streamed: thinking, its switches, and calls of tools."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from transformers import AutoTokenizer
from vllm.entrypoints.openai.chat_completion.protocol import (
    BatchChatCompletionRequest,
    ChatCompletionRequest,
)
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.parser import ParserManager

from tests.checkpoints import TINY
from tests.serving.answers import ANSWERS
from vllm_glm41v_npu import plugin
from vllm_glm41v_npu.serving.answer_parser import Glm41vParser, answer_parser
from vllm_glm41v_npu.serving.thinking import split
from vllm_glm41v_npu.serving.tool_calls import read_calls

OFF = {"enable_thinking": False}
THOUGHT = "<think>Look.</think>"
FUNCTION = {"name": "report", "parameters": {"type": "object", "properties": {}}}
NAMED = {"type": "function", "function": {"name": "report"}}
CALLS = (
    '[{"name": "report", "parameters": {"text": "a \\"}]\\\\", "of": [1, {"x": {}}]}}, '
    '{"name": "report", "parameters": {}}]'
)
ARGUMENTS = ['{"text": "a \\"}]\\\\", "of": [1, {"x": {}}]}', "{}"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    plugin.register()
    return AutoTokenizer.from_pretrained(TINY)


def composed(reasoning: bool = True, tools: bool = False) -> Any:
    """The class that vLLM composes."""
    return ParserManager.get_parser(
        tool_parser_name="hermes" if tools else None,
        reasoning_parser_name="glm41v" if reasoning else None,
        enable_auto_tools=tools,
    )


def request(**options: Any) -> ChatCompletionRequest:
    if "tool_choice" in options:
        options["tools"] = [{"type": "function", "function": FUNCTION}]
    return ChatCompletionRequest(messages=[{"role": "user", "content": "What?"}], **options)


def made(tokenizer: Any, kind: Any, asked: Any, kwargs: dict[str, Any] | None = None) -> Any:
    return kind(tokenizer, asked.tools, chat_template_kwargs=kwargs or {})


def pieces(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


def streamed(parser: Any, text: str, asked: Any, size: int = 1) -> tuple[str, str, dict[int, Any]]:
    """(reasoning, content, calls by number) of a stream."""
    cut = [*pieces(text, size)] or [""]
    reasoning = content = ""
    calls: dict[int, list[str]] = {}
    for number, piece in enumerate(cut):
        last = number == len(cut) - 1
        delta = parser.parse_delta(piece, [5], asked, [1, 2], finished=last)
        if delta is None:
            continue
        reasoning += delta.reasoning or ""
        content += delta.content or ""
        for call in delta.tool_calls:
            names = calls.setdefault(call.index, ["", ""])
            names[0] += call.function.name or ""
            names[1] += call.function.arguments or ""
    return reasoning, content, calls


def alike(tokenizer: Any, kind: Any, text: str, kwargs: dict[str, Any], **options: Any) -> Any:
    """What a whole answer and streams of any pieces say."""
    reasoning, content, calls = made(tokenizer, kind, request(**options), kwargs).parse(
        text, request(**options), enable_auto_tools=True
    )
    numbered = {n: [call.name, call.arguments] for n, call in enumerate(calls or [])}
    for size in (1, 2, 7, 1000):
        asked = request(**options)
        found = streamed(made(tokenizer, kind, asked, kwargs), text, asked, size)
        assert found == (reasoning or "", content or "", numbered)
    return reasoning, content, numbered


@pytest.mark.parametrize("reasoning", [True, False])
@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("407</answer>", "407"),
        ("\n 407 </answer>\n", "407 \n"),
        ("407", "407"),
        ("4 < 7</answe", "4 < 7</answe"),
        ("", None),
    ],
)
def test_after_a_closed_thinking(
    tokenizer: Any, text: str, content: str | None, reasoning: bool
) -> None:
    """Guards the tag that closes what the prompt opened, with the reasoning parser and without."""
    kind = answer_parser(composed(reasoning))
    assert alike(tokenizer, kind, text, OFF) == (None, content, {})


def test_boxes_after_a_closed_thinking(tokenizer: Any) -> None:
    """Guards the markers of boxes, of which vLLM's own parser asks nothing in such a stream."""
    text = "<|begin_of_box|>[1,2,3,4]<|end_of_box|></answer>"
    kind = answer_parser(composed())
    assert alike(tokenizer, kind, text, OFF)[1] == "[1,2,3,4]"
    kept = alike(tokenizer, kind, text, OFF | {"keep_tags": "boxes"})[1]
    assert kept == text.removesuffix("</answer>")
    assert alike(tokenizer, kind, text, OFF | {"keep_tags": "all"})[1] == text


def test_without_a_parser_nothing_else_changes(tokenizer: Any) -> None:
    """Guards servers without a reasoning parser: all that the model writes, each token a delta."""
    kind = answer_parser(None)
    text = ANSWERS["box"].text
    assert alike(tokenizer, kind, text, {}) == (None, text, {})
    delta = made(tokenizer, kind, request()).parse_delta("", [5], request(), [1], finished=False)
    assert delta.content == ""  # which may bring the token's probability


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("end", range(0, 40, 3))
def test_cut_off_anywhere(tokenizer: Any, name: str, end: int) -> None:
    """Guards the last characters of an answer that max_tokens cuts off within a tag."""
    text = ANSWERS[name].text[: -end or None]
    reasoning, content, _ = alike(tokenizer, answer_parser(composed()), text, {})
    assert (reasoning or "", content or "") == split(text)


def test_reasoning_left_out(tokenizer: Any) -> None:
    """Guards include_reasoning in streams, and where it is no field of the request."""
    text, content = ANSWERS["usual"].text, ANSWERS["usual"].content
    kind = answer_parser(composed())
    assert alike(tokenizer, kind, text, {}, include_reasoning=False) == (None, content, {})
    assert alike(tokenizer, kind, text, {"include_reasoning": False}) == (None, content, {})
    asked = ResponsesRequest(input="hi", include_reasoning=False)
    parser = made(tokenizer, kind, asked)
    outputs = parser.extract_response_outputs(
        model_output=text, model_output_token_ids=[], request=asked
    )
    assert [output.type for output in outputs] == ["message"]
    assert streamed(made(tokenizer, kind, asked), text, asked) == ("", content, {})


@pytest.mark.parametrize("reasoning", [True, False])
@pytest.mark.parametrize("cut", range(len(CALLS) + 1))
def test_required_calls_cut_off_anywhere(tokenizer: Any, cut: int, reasoning: bool) -> None:
    """Guards answers that should call tools and are cut off: none of it may be lost."""
    kind = answer_parser(composed(reasoning, tools=True))
    written = CALLS[:cut]
    text = THOUGHT + written if reasoning else written
    thought, content, calls = alike(tokenizer, kind, text, {}, tool_choice="required")
    assert thought == ("Look." if reasoning else None)
    assert calls or (content or "") == written
    assert [arguments for _, arguments in calls.values()] == [
        whole[: len(arguments)]
        for whole, (_, arguments) in zip(ARGUMENTS, calls.values(), strict=False)
    ]
    if cut == len(CALLS):
        assert calls == {0: ["report", ARGUMENTS[0]], 1: ["report", ARGUMENTS[1]]}


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_vllm_loses_an_answer(tokenizer: Any, choice: Any) -> None:
    """Guards the answer in words where a call was asked for; vLLM's own parser drops it.

    When the first assertion fails, the patch has one reason less.
    """
    text = THOUGHT + "<answer>407</answer>"
    theirs = made(tokenizer, composed(tools=True), request(tool_choice=choice))
    lost = theirs.parse(text, request(tool_choice="required"))
    assert lost[1:] == (None, [])
    asked = request(tool_choice=choice)
    parser = made(tokenizer, answer_parser(composed(tools=True)), asked)
    for _ in range(2):  # of several answers to a request, each
        _, content, calls = parser.parse(text, asked)
        if choice == "required":
            assert (content, calls) == ("407", [])
            assert asked.tool_choice == "none"  # or vLLM would show ""
        else:
            assert [call.arguments for call in calls] == ["407"]
    alike(tokenizer, answer_parser(composed(tools=True)), text, {}, tool_choice=choice)


def test_only_thinking_where_a_call_is_required(tokenizer: Any) -> None:
    """Guards answers that end within the thinking."""
    kind = answer_parser(composed(tools=True))
    for choice in ("required", NAMED):
        found = alike(tokenizer, kind, "<think>Look", {}, tool_choice=choice)
        assert found == ("Look", None, {})


def test_tools_that_the_model_may_call(tokenizer: Any) -> None:
    """Guards tools in a stream after thinking: the parser of tools used to see nothing of it."""
    kind = answer_parser(composed(tools=True))
    call = '<tool_call>\n{"name": "report", "arguments": {"number": "407"}}\n</tool_call>'
    for begun in (THOUGHT, THOUGHT + "<answer>"):
        found = alike(tokenizer, kind, begun + call, {}, tool_choice="auto")
        assert found[2] == {0: ["report", '{"number": "407"}']}
    plain = alike(tokenizer, kind, ANSWERS["usual"].text, {}, tool_choice="auto")
    assert plain == (*ANSWERS["usual"][1:], {})


def test_responses_lose_no_answer(tokenizer: Any) -> None:
    """Guards /v1/responses, which vLLM parses in another place."""
    asked = ResponsesRequest(
        input="hi", tool_choice="required", tools=[{"type": "function", **FUNCTION, "strict": None}]
    )
    parser = made(tokenizer, answer_parser(composed()), asked)

    def outputs(text: str) -> list[str]:
        found = parser.extract_response_outputs(
            model_output=THOUGHT + text, model_output_token_ids=[], request=asked
        )
        return [output.type for output in found]

    assert outputs("407") == ["reasoning", "message"]
    assert outputs(CALLS) == ["reasoning", "function_call", "function_call"]


def test_batches(tokenizer: Any) -> None:
    """Guards /v1/chat/completions/batch, whose messages are lists of conversations."""
    begun = {"role": "assistant", "content": "<think>Lo"}
    asked = BatchChatCompletionRequest(
        messages=[[{"role": "user", "content": "?"}, begun]],
        continue_final_message=True,
        add_generation_prompt=False,
    )
    parser = answer_parser(composed())(tokenizer, chat_template_kwargs={})
    assert parser.extract_reasoning("ok.</think>407", asked) == ("ok.", "407")
    parser = answer_parser(None)(tokenizer, chat_template_kwargs=OFF)
    assert parser.extract_reasoning("407</answer>", asked) == (None, "407")


def test_other_parsers_stay(tokenizer: Any) -> None:
    """Guards whoever chose another reasoning parser for the model."""
    other = ParserManager.get_parser(reasoning_parser_name="deepseek_r1")
    assert answer_parser(other) is other
    assert issubclass(answer_parser(None), Glm41vParser)


@pytest.mark.parametrize(
    "text", ["407", "[]", "[1]", '[{"parameters": {}}]', '{"name": "a", "parameters": {}}', "", "["]
)
def test_what_is_no_call(text: str) -> None:
    """Guards against calls of tools that nobody named."""
    assert read_calls(text) == []
