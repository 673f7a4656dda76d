# SPDX-License-Identifier: Apache-2.0
"""What vLLM does with requests without our patches: each test that fails lets one of them go."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.entrypoints.anthropic import api_router
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.chat_utils import MM_PARSER_MAP
from vllm.entrypoints.openai.chat_completion.batch_serving import OpenAIServingChatBatch
from vllm.entrypoints.openai.chat_completion.protocol import (
    BatchChatCompletionRequest,
    ChatCompletionRequest,
)
from vllm.entrypoints.openai.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media.image import ImageEmbeddingMediaIO
from vllm.renderers.registry import RendererRegistry

from vllm_glm41v_npu.patches import FRONT_END, SERVER, anthropic_errors, chat_parts, front_end, wrap
from vllm_glm41v_npu.patches import answer_parser as answer_patch
from vllm_glm41v_npu.serving import answer_parser

MESSAGES = {"model": "a", "max_tokens": 3, "messages": [{"role": "user", "content": "hi"}]}


def test_refused_requests() -> None:
    """Guards patches/refused_requests.py: no message is no error, and a string breaks vLLM."""
    assert ChatCompletionRequest(messages=[]).messages == []
    with pytest.raises(AttributeError):
        ChatCompletionRequest.model_validate({"messages": [], "structured_outputs": "x"})


def test_anthropic_errors(caplog: pytest.LogCaptureFixture) -> None:
    """Guards patches/anthropic_errors.py: the router answers 500 to a caller's error."""

    async def refuse(*arguments: Any) -> Any:
        raise VLLMValidationError("no picture")

    handler = SimpleNamespace(create_messages=refuse)
    state = SimpleNamespace(anthropic_serving_messages=handler)
    raw = SimpleNamespace(app=SimpleNamespace(state=state))
    route = inspect.unwrap(api_router.create_messages)
    request = AnthropicMessagesRequest.model_validate(MESSAGES)
    assert asyncio.run(route(request, raw)).status_code == 500
    handler.create_messages = anthropic_errors._refusing(refuse)
    answer = asyncio.run(route(request, raw))
    assert answer.status_code == 400
    assert json.loads(answer.body)["error"]["type"] == "invalid_request_error"


def test_failures_stay_failures() -> None:
    """Guards against a fault of the server that its caller is told to mend."""

    async def fail() -> Any:
        raise RuntimeError("out of everything")

    async def answer() -> Any:
        return ErrorResponse

    with pytest.raises(RuntimeError):
        asyncio.run(anthropic_errors._refusing(fail)())
    assert asyncio.run(anthropic_errors._refusing(answer)()) is ErrorResponse


def test_calls_cut_off_for_anthropics_clients() -> None:
    """Guards answers whose arguments max_tokens cuts off: they used to be 500."""

    def call(arguments: str) -> Any:
        return SimpleNamespace(function=SimpleNamespace(arguments=arguments))

    message = SimpleNamespace(content=None, tool_calls=[call('{"a": 1}'), call('{"a": "4')])
    response = SimpleNamespace(choices=[SimpleNamespace(message=message)])
    convert = anthropic_errors._showing_what_is_cut_off(lambda self, response: response)
    assert convert(None, response) is response
    assert message.content == '{"a": "4'
    assert [each.function.arguments for each in message.tool_calls] == ['{"a": 1}']


def test_chat_parts() -> None:
    """Guards patches/chat_parts.py: vLLM takes no other form of a picture."""
    assert not {"image", "video"} & MM_PARSER_MAP.keys()
    with pytest.raises(ValueError, match="valid dictionary"):
        MM_PARSER_MAP["image_url"]({"type": "image_url", "image_url": "https://a/b.png"})
    in_form = chat_parts._in_form(lambda messages, model_config: messages)
    config = SimpleNamespace(hf_config=SimpleNamespace(model_type="glm4v"))
    parse = functools.partial(in_form, model_config=config)
    given: list[Any] = [
        {"role": "user", "content": [{"type": "image", "image": "https://a/b.png"}]}
    ]
    part = {"type": "image_url", "image_url": {"url": "https://a/b.png"}}
    assert parse(given) == [{"role": "user", "content": [part]}]
    assert given[0]["content"][0]["type"] == "image"  # the caller's own stays
    assert parse([{"role": "user", "content": "hi"}, 3]) == [{"role": "user", "content": "hi"}, 3]


def test_batches() -> None:
    """Guards patches/answer_parser.py: batches ask a reasoning parser alone, the last argument."""
    generate = OpenAIServingChatBatch.chat_completion_full_generator_batch
    assert [*inspect.signature(generate).parameters][-1] == "reasoning_parser"

    class Handler:
        parser_cls = answer_parser.answer_parser(None)
        renderer = SimpleNamespace(tokenizer=None)

        def _effective_chat_template_kwargs(self, request: Any) -> Any:
            return request.chat_template_kwargs

        async def chat_completion_full_generator_batch(self, *arguments: Any) -> Any:
            return arguments[-1]

    wrap(Handler, "chat_completion_full_generator_batch", answer_patch._parsing_batches)
    off = {"enable_thinking": False}
    messages = [[{"role": "user", "content": "hi"}]]
    request = BatchChatCompletionRequest(messages=messages, chat_template_kwargs=off)
    others: Any = ("generators", "id", "model", [], "tokenizer", "metadata")
    parser = asyncio.run(
        Handler().chat_completion_full_generator_batch(request, *others, "reasoning parser")
    )
    assert parser.extract_reasoning("4</answer>", request) == (None, "4")


def test_embedding_files() -> None:
    """Guards patches/embedding_files.py: "pop from empty list" is what torch says of a text."""
    with pytest.raises(IndexError):
        ImageEmbeddingMediaIO().load_base64("", "dGhpcyBpcyB0ZXh0")


@pytest.mark.parametrize("serves", [False, True])
def test_where_requests_are_taken(monkeypatch: pytest.MonkeyPatch, serves: bool) -> None:
    """Guards other models in the same process, and what a server alone has loaded."""
    applied: list[str] = []
    monkeypatch.setattr(front_end, "apply_patches", lambda stack, place: applied.append(place))
    monkeypatch.setattr(front_end, "_SERVES", __name__ if serves else "no.such.module")
    monkeypatch.setattr(RendererRegistry, "load_renderer", lambda *arguments: "made")
    front_end.apply()

    def load(model_type: str) -> Any:
        config = SimpleNamespace(hf_config=SimpleNamespace(model_type=model_type))
        return RendererRegistry().load_renderer("hf", SimpleNamespace(model_config=config), None)

    assert load("qwen3_vl") == "made"
    assert applied == []
    assert load("glm4v") == "made"
    assert applied == [FRONT_END, SERVER][: 1 + serves]
