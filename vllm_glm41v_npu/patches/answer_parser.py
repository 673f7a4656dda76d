# SPDX-License-Identifier: Apache-2.0
"""Let one parser take apart the answers of GLM-4.1V, whole and streamed.

vLLM 0.23.0 composes a parser of its own from a reasoning parser and a tool parser, and a plugin can
register those two alone. Its parser loses answers that should have called a tool, shows thinking in
streams with `include_reasoning: false`, and calls no tools in streams after thinking that a parser
like ours takes apart. Can go when vLLM lets a plugin register a whole parser, or does all three.
"""

from __future__ import annotations

import functools
from typing import Any


def apply() -> None:
    """Put the parser into the handlers of chats (Anthropic's too), batches and responses."""
    from vllm.entrypoints.openai.chat_completion.batch_serving import OpenAIServingChatBatch
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

    _replace(OpenAIServingChat, "parser_cls")
    _replace(OpenAIServingResponses, "parser")
    _parse_batches(OpenAIServingChatBatch)


def _replace(handler: Any, attribute: str) -> None:
    """Replace what `handler.__init__` leaves in `attribute`."""
    make = handler.__init__

    @functools.wraps(make)
    def __init__(self: Any, *arguments: Any, **options: Any) -> None:
        from vllm_glm41v_npu.serving.answer_parser import answer_parser

        make(self, *arguments, **options)
        setattr(self, attribute, answer_parser(getattr(self, attribute)))

    handler.__init__ = __init__


def _parse_batches(handler: Any) -> None:
    """Give batches, which ask a reasoning parser alone, the whole one in its place."""
    generate = handler.chat_completion_full_generator_batch

    @functools.wraps(generate)
    async def chat_completion_full_generator_batch(
        self: Any, request: Any, *arguments: Any, **options: Any
    ) -> Any:
        one = request.to_chat_completion_request(request.messages[0])
        kwargs = self._effective_chat_template_kwargs(one)
        *others, _ = arguments
        parser = self.parser_cls(self.renderer.tokenizer, chat_template_kwargs=kwargs)
        return await generate(self, request, *others, parser, **options)

    handler.chat_completion_full_generator_batch = chat_completion_full_generator_batch
