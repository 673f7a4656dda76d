# SPDX-License-Identifier: Apache-2.0
"""The reasoning parser `glm41v`: `vllm serve --reasoning-parser glm41v`.

A request chooses the tags that stay in the content by `chat_template_kwargs={"keep_tags": "boxes"}`
(or "all", or "none"); `--default-chat-template-kwargs` chooses them for a whole server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vllm.exceptions import VLLMValidationError
from vllm.reasoning.basic_parsers import BaseThinkingReasoningParser

from vllm_glm41v_npu.backends import current_backend
from vllm_glm41v_npu.serving.thinking import BOX, END_THINK, REMOVED, THINK, ThinkingSplitter, split
from vllm_glm41v_npu.serving.thinking_switch import closes_thinking
from vllm_glm41v_npu.upstream import DeltaMessage

if TYPE_CHECKING:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.tokenizers import TokenizerLike

ASSISTANT = "<|assistant|>"
KEEP_TAGS = "keep_tags"


class Glm41vReasoningParser(BaseThinkingReasoningParser):
    """Makes reasoning of the text in `<think>`, and content of the rest; see `ThinkingSplitter`.

    vLLM makes one for each use of each request: to look at the prompt, to split a text, or, in the
    engine, to hold a grammar back until the thinking has ended. `Glm41vParser` drives it.

    Raises ValueError where `keep_tags` is something else, and RuntimeError where the vocabulary
    has no `<think>` and `</think>`.
    """

    start_token = THINK
    end_token = END_THINK

    def __init__(self, tokenizer: TokenizerLike, *args: Any, **kwargs: Any) -> None:
        super().__init__(tokenizer, *args, **kwargs)
        given = kwargs.get("chat_template_kwargs") or {}
        self._keep = given.get(KEEP_TAGS, "none")
        if self._keep not in [*REMOVED]:
            raise VLLMValidationError(  # a ValueError that vLLM answers without a traceback
                f"chat_template_kwargs has {KEEP_TAGS}={self._keep!r}; expected one of "
                f"{', '.join(map(repr, REMOVED))}."
            )
        self._assistant = self.vocab.get(ASSISTANT)
        self._closed = closes_thinking(given)
        self._thinks = False
        self._splitter: ThinkingSplitter | None = None

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Return True where a prompt has ended the thinking of the turn it leaves to the model.

        Earlier turns, which may bring thinking of their own, do not count.
        """
        tags = (self.start_token_id, self.end_token_id, self._assistant)
        last = next((token for token in reversed(input_ids) if token in tags), None)
        self._thinks = last == self.start_token_id  # where a stream would begin
        return last == self.end_token_id

    def extract_reasoning(
        self, model_output: str, request: ChatCompletionRequest | ResponsesRequest
    ) -> tuple[str | None, str | None]:
        """Return (reasoning, content) of a whole answer; an empty part is None."""
        thinks = _opens_thinking(request)
        reasoning, content = split(
            model_output, thinking=thinks, closed=self._closed, keep=self._keep
        )
        return reasoning or None, content or None

    def extract_reasoning_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> DeltaMessage | None:
        """Return the message that `delta_text` settles, or None; called with each delta in turn."""
        return _delta(*self._splits().feed(delta_text))

    def end_of_stream(self) -> DeltaMessage | None:
        """Return the text that waited for the rest of a tag, as no more comes; or None."""
        return _delta(*self._splits().end())

    def _splits(self) -> ThinkingSplitter:
        if self._splitter is None:
            self._splitter = ThinkingSplitter(
                thinking=self._thinks, closed=self._closed, keep=self._keep
            )
        return self._splitter

    def adjust_request(
        self, request: ChatCompletionRequest | ResponsesRequest
    ) -> ChatCompletionRequest | ResponsesRequest:
        """Let the detokenizer keep the markers of boxes, where they are wanted and are tokens.

        Raises ValueError about a budget for the thinking that vllm-ascend would not keep to.
        """
        budget = getattr(request, "thinking_token_budget", None)
        if budget is not None and not current_backend().limits_thinking:
            raise VLLMValidationError(
                "thinking_token_budget is set, and vllm-ascend has no budget for the "
                "thinking; leave it out, and limit thinking and answer together by max_tokens."
            )
        if self._keep == "boxes" and BOX in self.vocab:
            request.skip_special_tokens = False
        return request


def _delta(reasoning: str, content: str) -> DeltaMessage | None:
    fields = {"reasoning": reasoning, "content": content}
    settled = {name: text for name, text in fields.items() if text}
    return DeltaMessage(**settled) if settled else None


def _opens_thinking(request: ChatCompletionRequest | ResponsesRequest) -> bool:
    """Return True where the answer continues an assistant's message within its thinking."""
    if not getattr(request, "continue_final_message", False):
        return False
    last: Any = request.messages[-1]
    if isinstance(last, list):  # a batch, of whose conversations all go on, or none
        last = last[-1]
    content = last.get("content") or ""
    if not isinstance(content, str):
        content = "".join(part.get("text") or "" for part in content)
    return content.rfind(THINK) > content.rfind(END_THINK)
