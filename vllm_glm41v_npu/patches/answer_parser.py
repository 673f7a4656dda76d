# SPDX-License-Identifier: Apache-2.0
"""Let one parser take apart the answers of GLM-4.1V, whole and streamed.

vLLM 0.23.0 composes a parser of its own from a reasoning parser and a tool parser, and a plugin can
register those two alone. Its parser loses answers that should have called a tool, shows thinking in
streams with `include_reasoning: false`, and calls no tools in streams after thinking that a parser
like ours takes apart. Ends when vLLM lets a plugin register a whole parser, or does all three.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from vllm_glm41v_npu.patches import wrap


def apply() -> None:
    """Put the parser into the handlers of chats (Anthropic's too), batches and responses."""
    from vllm.entrypoints.openai.chat_completion.batch_serving import OpenAIServingChatBatch
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

    wrap(OpenAIServingChat, "__init__", partial(_replacing, "parser_cls"))
    wrap(OpenAIServingResponses, "__init__", partial(_replacing, "parser"))
    wrap(OpenAIServingChatBatch, "chat_completion_full_generator_batch", _parsing_batches)


def _replacing(attribute: str, make: Any) -> Any:
    """Return a handler's `__init__` that replaces what `make` leaves in `attribute`."""

    def __init__(self: Any, *arguments: Any, **options: Any) -> None:
        from vllm_glm41v_npu.serving.answer_parser import answer_parser

        make(self, *arguments, **options)
        setattr(self, attribute, answer_parser(getattr(self, attribute)))

    return __init__


def _parsing_batches(generate: Any) -> Any:
    """Give batches, which ask a reasoning parser alone, the whole one in its place."""

    async def chat_completion_full_generator_batch(
        self: Any, request: Any, *arguments: Any, **options: Any
    ) -> Any:
        one = request.to_chat_completion_request(request.messages[0])
        kwargs = self._effective_chat_template_kwargs(one)
        *others, _ = arguments
        parser = self.parser_cls(self.renderer.tokenizer, chat_template_kwargs=kwargs)
        return await generate(self, request, *others, parser, **options)

    return chat_completion_full_generator_batch
