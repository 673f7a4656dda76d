# SPDX-License-Identifier: Apache-2.0
"""The reasoning parser as vLLM drives it: by name, whole or streamed, and for a grammar."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from transformers import AutoTokenizer
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser import ParserManager
from vllm.reasoning import ReasoningParserManager

from tests.checkpoints import TINY
from tests.serving.answers import ANSWERS
from vllm_glm41v_npu import plugin
from vllm_glm41v_npu.backends import ATLAS_A2
from vllm_glm41v_npu.serving import reasoning
from vllm_glm41v_npu.serving.answer_parser import answer_parser

BOXED = ANSWERS["coordinates"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    plugin.register()
    return AutoTokenizer.from_pretrained(TINY)


def request(**options: Any) -> ChatCompletionRequest:
    messages = options.pop("messages", [{"role": "user", "content": "What?"}])
    return ChatCompletionRequest(model="tiny", messages=messages, **options)


def parser_of(tokenizer: Any, **chat_template_kwargs: Any) -> Any:
    """What a server makes for one choice of one request."""
    parser = answer_parser(ParserManager.get_parser(reasoning_parser_name="glm41v"))
    return parser(tokenizer, None, chat_template_kwargs=chat_template_kwargs)


def reasoner_of(tokenizer: Any) -> Any:
    """What the engine makes for the grammar of one request."""
    return ReasoningParserManager.get_reasoning_parser("glm41v")(tokenizer=tokenizer)


def prompt(tokenizer: Any, *messages: str, begun: str = "") -> list[int]:
    """The ids of a conversation that alternates, of which the last turn may have begun."""
    roles = ("user", "assistant") * len(messages)
    turns = [{"role": role, "content": text} for role, text in zip(roles, messages, strict=False)]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return tokenizer.encode(text + begun, add_special_tokens=False)


def deltas(tokenizer: Any, text: str, lag: int) -> Iterator[tuple[str, list[int]]]:
    """Token by token, the text `lag` characters behind, as where vLLM looks for stop strings."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    shown = 0
    for count in range(1, len(ids) + 1):
        decoded = tokenizer.decode(ids[:count]).rstrip("\N{REPLACEMENT CHARACTER}")
        end = max(shown, len(decoded) - lag)
        yield text[shown:end], ids[count - 1 : count]
        shown = end
    yield text[shown:], [tokenizer.eos_token_id]


def streamed(parser: Any, pieces: Iterator[tuple[str, list[int]]], ids: list[int]) -> list[str]:
    """[reasoning, content] of a stream."""
    result = ["", ""]
    for text, tokens in (every := [*pieces]):
        finished = tokens == every[-1][1]
        delta = parser.parse_delta(text, tokens, request(), ids, finished=finished)
        if delta is not None:
            result[0] += delta.reasoning or ""
            result[1] += delta.content or ""
    return result


@pytest.mark.parametrize("lag", [0, 1, 7, 30])
@pytest.mark.parametrize("name", ANSWERS)
def test_whole_and_streamed(tokenizer: Any, name: str, lag: int) -> None:
    """Guards the tags as tokens and spelled out, and the text that comes with the last delta."""
    text, *expected = ANSWERS[name]
    found = parser_of(tokenizer).parse(text, request())[:2]
    assert [part or "" for part in found] == expected
    assert "" not in found
    ids = prompt(tokenizer, "What?")
    assert streamed(parser_of(tokenizer), deltas(tokenizer, text, lag), ids) == expected


def test_deltas_of_any_text(tokenizer: Any) -> None:
    """Guards against a tag that is split between deltas at any of its characters."""
    text, *expected = BOXED
    ids = prompt(tokenizer, "What?")
    for cut in range(len(text)):
        pieces = iter([(text[:cut], [1]), (text[cut:], [tokenizer.eos_token_id])])
        assert streamed(parser_of(tokenizer), pieces, ids) == expected


def test_an_answer_that_ends_at_its_closing_tag(tokenizer: Any) -> None:
    """Guards the last character where </answer> ends the sequence, and vLLM drops its text."""
    ids = prompt(tokenizer, "What?")
    end = tokenizer.convert_tokens_to_ids("</answer>")
    pieces = iter([("<think>Less.</think><answer>", [1]), ("<", [2]), ("", [end])])
    assert streamed(parser_of(tokenizer), pieces, ids) == ["Less.", "<"]


def test_boxes_are_kept_when_asked(tokenizer: Any) -> None:
    """Guards chat_template_kwargs, whole and streamed."""
    expected = [BOXED.thinking, "<|begin_of_box|>[[10,20,300,400]]<|end_of_box|>"]
    parser = parser_of(tokenizer, keep_tags="boxes")
    assert list(parser.parse(BOXED.text, request())[:2]) == expected
    pieces = deltas(tokenizer, BOXED.text, 0)
    assert streamed(parser, pieces, prompt(tokenizer, "What?")) == expected


@pytest.mark.parametrize("is_token", [False, True])
def test_markers_that_are_tokens_are_detokenized(tokenizer: Any, is_token: bool) -> None:
    """Guards against markers that vLLM drops as special tokens before the parser sees them."""
    for keep in ("none", "boxes"):
        parser = parser_of(tokenizer, keep_tags=keep).reasoning_parser
        if is_token:
            parser.vocab = tokenizer.get_vocab() | {"<|begin_of_box|>": 511}
        adjusted = parser.adjust_request(request())
        assert adjusted.skip_special_tokens is not (keep == "boxes" and is_token)


@pytest.mark.parametrize("keep", [True, "some", ["boxes"], None])
def test_keep_tags_is_checked(tokenizer: Any, keep: Any) -> None:
    """Guards against a wish that is silently not granted."""
    with pytest.raises(ValueError, match="keep_tags=.*; expected one of 'none', 'boxes', 'all'"):
        parser_of(tokenizer, keep_tags=keep)


def test_a_budget_that_would_be_lost(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a thinking_token_budget that vllm-ascend ignores."""
    parser = parser_of(tokenizer).reasoning_parser
    asked = request(thinking_token_budget=5)
    assert parser.adjust_request(asked) is asked
    monkeypatch.setattr(reasoning, "current_backend", lambda: ATLAS_A2)
    assert parser.adjust_request(request())
    with pytest.raises(ValueError, match="vllm-ascend has no budget for the thinking"):
        parser.adjust_request(asked)


def test_a_message_that_goes_on_in_its_thinking(tokenizer: Any) -> None:
    """Guards answers after a prompt that ends within <think>."""
    text, begun = "wo.</think><answer>2</answer>", "<think>T"
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": begun}]
    asked = request(messages=messages, continue_final_message=True, add_generation_prompt=False)
    assert parser_of(tokenizer).parse(text, asked)[:2] == ("wo.", "2")
    parts = [{"type": "text", "text": begun}]
    asked.messages[-1] = {"role": "assistant", "content": parts}
    assert parser_of(tokenizer).parse("wo", asked)[:2] == ("wo", None)
    ids = prompt(tokenizer, "?", begun=begun)
    assert streamed(parser_of(tokenizer), deltas(tokenizer, text, 0), ids) == ["wo.", "2"]


def test_earlier_turns_do_not_end_the_thinking(tokenizer: Any) -> None:
    """Guards follow-up questions: vLLM's own parsers take the thinking of an earlier answer, or a
    tag in a question, for this turn's."""
    ids = prompt(tokenizer, "What?", ANSWERS["usual"].text, "Why </think>?")
    assert not reasoner_of(tokenizer).is_reasoning_end(ids)
    text, *expected = ANSWERS["usual"]
    assert streamed(parser_of(tokenizer), deltas(tokenizer, text, 0), ids) == expected


def test_a_grammar_waits_for_the_end_of_the_thinking(tokenizer: Any) -> None:
    """Guards structured output: free thinking, then the grammar from the first token on."""
    reasoner = reasoner_of(tokenizer)
    start, end = (tokenizer.convert_tokens_to_ids(tag) for tag in ("<think>", "</think>"))
    ids = prompt(tokenizer, "What?")
    assert not reasoner.is_reasoning_end(ids)
    assert not reasoner.is_reasoning_end_streaming([*ids, start, 5], [5])
    assert reasoner.is_reasoning_end_streaming([*ids, start, 5, end], [end])
    assert reasoner.is_reasoning_end(prompt(tokenizer, "?", begun="<think></think><answer>"))
    assert reasoner.extract_content_ids([start, 5, end, 6, 7]) == [6, 7]
    assert reasoner.count_reasoning_tokens([start, 5, 6, end, 7]) == 2
    assert (reasoner.reasoning_start_str, reasoner.reasoning_end_str) == ("<think>", "</think>")
