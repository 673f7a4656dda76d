# SPDX-License-Identifier: Apache-2.0
"""The parser of a served answer: thinking, content and tool calls, whole or in a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from openai.types.responses import ToolChoiceFunction
from vllm.entrypoints.chat_utils import make_tool_call_id
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionNamedToolChoiceParam
from vllm.entrypoints.openai.engine.protocol import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
    FunctionCall,
)
from vllm.parser.abstract_parser import DelegatingParser

from vllm_glm41v_npu.serving.reasoning import Glm41vReasoningParser
from vllm_glm41v_npu.serving.thinking import ThinkingSplitter, split
from vllm_glm41v_npu.serving.thinking_switch import closes_thinking
from vllm_glm41v_npu.serving.tool_calls import CallReader, Piece, read_calls

if TYPE_CHECKING:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.parser.abstract_parser import Parser

    Request: TypeAlias = ChatCompletionRequest | ResponsesRequest

INCLUDE_REASONING = "include_reasoning"
NAMED = (ToolChoiceFunction, ChatCompletionNamedToolChoiceParam)


class Glm41vParser(DelegatingParser):
    """Parses one request's answers, with the reasoning parser `glm41v` or without any.

    vLLM's own parser drops an answer that should call a tool and does not, and does not use the
    reasoning parser once the thinking has ended, so that tags stay and tools are not called in a
    stream. Without a reasoning parser only one tag is removed: the `</answer>` whose `<answer>` is
    in the prompt, where thinking is switched off.
    """

    def __init__(self, tokenizer: Any, tools: Any = None, *args: Any, **kwargs: Any) -> None:
        super().__init__(tokenizer, tools, *args, **kwargs)
        given = kwargs.get("chat_template_kwargs") or {}
        self._includes_reasoning = given.get(INCLUDE_REASONING, True)
        self._closed = closes_thinking(given)
        self._splitter = ThinkingSplitter(closed=True, keep="boxes") if self._closed else None
        self._reader = CallReader()
        self._prompt_seen = False
        self._tool_choice: Any = None

    # A whole answer

    def extract_reasoning(
        self, model_output: str, request: Request
    ) -> tuple[str | None, str | None]:
        """Return (reasoning, content); a part that is empty or not wanted is None."""
        if self._reasoning_parser is not None:
            reasoning, content = super().extract_reasoning(model_output, request)
            return reasoning if self._wants_reasoning(request) else None, content
        if self._closed:
            return None, split(model_output, closed=True, keep="boxes")[1] or None
        return None, model_output

    def parse(
        self, model_output: str, request: Request, enable_auto_tools: bool = False
    ) -> tuple[str | None, str | None, list[FunctionCall] | None]:
        """Return (reasoning, content, tool calls) of one of the request's answers.

        Where a tool had to be called and none was, the request is told that none had to be: vLLM
        shows the content of an answer only then.
        """
        self._tool_choice = self._tool_choice or request.tool_choice
        request.tool_choice = self._tool_choice
        reasoning, content, calls = super().parse(model_output, request, enable_auto_tools)
        if _has_to_call(request) and not calls and self._tool_parser is not None:
            request.tool_choice = "none"
        return reasoning, content, calls

    def _extract_tool_calls(
        self, content: str | None, request: Request, enable_auto_tools: bool = False
    ) -> tuple[list[FunctionCall] | None, str | None]:
        if not self._reads_json(request):
            return super()._extract_tool_calls(content, request, enable_auto_tools)
        calls = [FunctionCall(**call._asdict()) for call in read_calls(content or "")]
        return calls, None if calls else content

    def _parse_tool_calls(
        self, request: ResponsesRequest, content: str | None, enable_auto_tools: bool
    ) -> tuple[list[FunctionCall], str | None]:
        if not self._reads_json(request):
            return super()._parse_tool_calls(request, content, enable_auto_tools)
        calls, content = self._extract_tool_calls(content, request, enable_auto_tools)
        return calls or [], content

    # A stream

    def parse_delta(
        self,
        delta_text: str,
        delta_token_ids: list[int],
        request: Request,
        prompt_token_ids: list[int] | None = None,
        *,
        finished: bool,
    ) -> DeltaMessage | None:
        """Return the message that a piece of the answer settles; `finished` with the last piece."""
        if not self._prompt_seen and prompt_token_ids is not None:
            self._prompt_seen = True
            self.is_reasoning_end(prompt_token_ids)  # where the stream begins
        reasoning, content = self._split_delta(delta_text, delta_token_ids, finished)
        message = self._content_delta(content, delta_token_ids, request, finished)
        if reasoning and self._wants_reasoning(request):
            message = message or DeltaMessage()
            message.reasoning = reasoning
        return message

    def _split_delta(self, text: str, token_ids: Sequence[int], finished: bool) -> tuple[str, str]:
        """Return the (reasoning, content) that `text` settles."""
        if isinstance(self._reasoning_parser, Glm41vReasoningParser):
            parser = self._reasoning_parser
            deltas = [parser.extract_reasoning_streaming("", "", text, (), (), token_ids)]
            deltas += [parser.end_of_stream()] if finished else []
            reasoning = "".join(delta.reasoning or "" for delta in deltas if delta)
            return reasoning, "".join(delta.content or "" for delta in deltas if delta)
        if self._splitter is not None:
            content = self._splitter.feed(text)[1]
            return "", content + (self._splitter.end()[1] if finished else "")
        return "", text

    def _content_delta(
        self, content: str, token_ids: list[int], request: Request, finished: bool
    ) -> DeltaMessage | None:
        """Return a message of content or of the tool calls in it; None where nothing is settled."""
        if self._tool_parser is None or request.tool_choice == "none":
            bare = self._reasoning_parser is None and self._splitter is None
            # As without a parser, a token without text may bring its probability.
            return DeltaMessage(content=content) if content or bare else None
        if self._reads_json(request):
            return self._read_calls_delta(content, finished)
        if not content and not finished:
            return None
        if isinstance(request.tool_choice, NAMED) and not content:
            return None
        return self._tools_delta(content, token_ids, request, finished)

    def _read_calls_delta(self, content: str, finished: bool) -> DeltaMessage | None:
        pieces = self._reader.feed(content)
        if pieces:
            return DeltaMessage(tool_calls=[self._tool_delta(piece) for piece in pieces])
        if finished and not self._reader.found and self._reader.text:
            return DeltaMessage(content=self._reader.text)
        return None

    def _tool_delta(self, piece: Piece) -> DeltaToolCall:
        function = DeltaFunctionCall(arguments=piece.arguments)
        if piece.name is None:
            return DeltaToolCall(index=piece.call, function=function)
        function.name = piece.name
        state = self._stream_state
        number = state.history_tool_call_cnt
        state.history_tool_call_cnt += 1
        name = make_tool_call_id(state.tool_call_id_type, piece.name, number)
        return DeltaToolCall(index=piece.call, id=name, type="function", function=function)

    def _tools_delta(
        self, content: str, token_ids: list[int], request: Request, finished: bool
    ) -> DeltaMessage | None:
        """Return the message that vLLM's parser of tools makes of the content."""
        state = self._stream_state
        text, ids = state.previous_text + content, state.previous_token_ids + token_ids
        message, state.function_name_returned = self._extract_tool_calls_streaming(
            state.previous_text,
            text,
            content,
            state.previous_token_ids,
            ids,
            token_ids,
            request,
            state.history_tool_call_cnt,
            state.tool_call_id_type,
            state.function_name_returned,
        )
        state.previous_text, state.previous_token_ids = text, ids
        if message and message.tool_calls and message.tool_calls[0].id is not None:
            state.history_tool_call_cnt += 1
        if finished:
            self._append_unstreamed_tool_args(message)
        return message

    # Of the request

    def _reads_json(self, request: Request) -> bool:
        """Return True where the grammar makes the answer a list of calls in vLLM's own form."""
        parser = self._tool_parser
        own_form = parser is None or parser.supports_required_and_named
        return request.tool_choice == "required" and own_form

    def _wants_reasoning(self, request: Request) -> bool:
        # ResponsesRequest has no such field; what a client sends beside its fields is kept.
        return self._includes_reasoning and getattr(request, INCLUDE_REASONING, True)


def _has_to_call(request: Request) -> bool:
    return request.tool_choice == "required" or isinstance(request.tool_choice, NAMED)


def answer_parser(parser: type[Parser] | None) -> type[Parser]:
    """Return the class of parsers to use in place of `parser`, which vLLM composed.

    Another reasoning parser than `glm41v` stays as it is.
    """
    reasoning = parser.reasoning_parser_cls if parser else None
    if parser is not None and reasoning not in (None, Glm41vReasoningParser):
        return parser
    classes = {
        "reasoning_parser_cls": reasoning,
        "tool_parser_cls": parser.tool_parser_cls if parser else None,
    }
    return type(Glm41vParser.__name__, (Glm41vParser,), classes)
