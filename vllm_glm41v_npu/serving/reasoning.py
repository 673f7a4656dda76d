# SPDX-License-Identifier: Apache-2.0
"""The reasoning parser `glm41v`: `vllm serve --reasoning-parser glm41v`.

Which tags stay in the content, a request says with `chat_template_kwargs={"keep_tags": "boxes"}`
(or "all", or "none"), and for a whole server `--default-chat-template-kwargs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from vllm.entrypoints.openai.engine.protocol import DeltaMessage
from vllm.exceptions import VLLMValidationError
from vllm.reasoning.basic_parsers import BaseThinkingReasoningParser

from vllm_glm41v_npu.platform import current_backend

from .thinking import BOX, END_ANSWER, END_THINK, REMOVED, THINK, ThinkingSplitter, split

if TYPE_CHECKING:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.tokenizers import TokenizerLike

ASSISTANT = "<|assistant|>"
TURN_ENDS = ("<|endoftext|>", "<|user|>", "<|observation|>")
KEEP_TAGS = "keep_tags"


class Glm41vReasoningParser(BaseThinkingReasoningParser):
    """`<think>` to reasoning, the rest without its tags to content; see `ThinkingSplitter`.

    vLLM makes one for each use of each request: to look at the prompt, to split a text, or, in the
    engine, to hold a grammar back until the thinking has ended. A stream does not say which delta
    is its last, so an answer cut off (by its length or a stop string) within something that looks
    like the start of a tag is streamed without these characters.

    Raises ValueError where `keep_tags` is something else, and RuntimeError where the vocabulary
    has no `<think>` and `</think>`.
    """

    start_token = THINK
    end_token = END_THINK

    def __init__(self, tokenizer: TokenizerLike, *args: Any, **kwargs: Any) -> None:
        super().__init__(tokenizer, *args, **kwargs)
        self._keep = (kwargs.get("chat_template_kwargs") or {}).get(KEEP_TAGS, "none")
        if self._keep not in [*REMOVED]:
            raise VLLMValidationError(  # a ValueError that vLLM answers without a traceback
                f"chat_template_kwargs has {KEEP_TAGS}={self._keep!r}; expected one of "
                f"{', '.join(map(repr, REMOVED))}."
            )
        self._assistant = self.vocab.get(ASSISTANT)
        self._turn_ends = {self.vocab[token] for token in TURN_ENDS if token in self.vocab}
        self._end_answer = self.vocab.get(END_ANSWER)
        self._thinks = False
        self._splitter: ThinkingSplitter | None = None

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Whether a prompt has ended the thinking of the turn it leaves to the model.

        Earlier turns, which may bring thinking of their own, do not count.
        """
        tags = (self.start_token_id, self.end_token_id, self._assistant)
        last = next((token for token in reversed(input_ids) if token in tags), None)
        self._thinks = last == self.start_token_id  # where a stream would begin
        return last == self.end_token_id

    def is_reasoning_end_streaming(
        self, input_ids: Sequence[int], delta_ids: Iterable[int]
    ) -> bool:
        """Whether the thinking ends in `delta_ids`.

        To the parser that splits a stream, never: vLLM would hand it no more of the answer.
        """
        return self._splitter is None and super().is_reasoning_end_streaming(input_ids, delta_ids)

    def extract_reasoning(
        self, model_output: str, request: ChatCompletionRequest | ResponsesRequest
    ) -> tuple[str | None, str | None]:
        """(reasoning, content) of a whole answer; what is empty is None."""
        thinks = _opens_thinking(request)
        reasoning, content = split(model_output, thinking=thinks, keep=self._keep)
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
        """What `delta_text` settles, or None; to be called with every delta in turn."""
        if self._splitter is None:
            self._splitter = ThinkingSplitter(thinking=self._thinks, keep=self._keep)
        parts = [self._splitter.feed(delta_text)]
        if self._ends_turn(delta_text, delta_token_ids):
            parts.append(self._splitter.end())
        reasoning, content = map("".join, zip(*parts, strict=True))
        fields = {"reasoning": reasoning, "content": content}
        settled = {name: text for name, text in fields.items() if text}
        return DeltaMessage(**settled) if settled else None

    def adjust_request(
        self, request: ChatCompletionRequest | ResponsesRequest
    ) -> ChatCompletionRequest | ResponsesRequest:
        """Let the detokenizer keep the markers of boxes, if they are wanted and tokens.

        Raises ValueError about a budget for the thinking that vllm-ascend would not keep to.
        """
        budget = getattr(request, "thinking_token_budget", None)
        if budget is not None and current_backend().is_ascend:
            raise VLLMValidationError(
                "thinking_token_budget is set, and vllm-ascend 0.23.0 has no budget for the "
                "thinking; leave it out, and limit thinking and answer together by max_tokens."
            )
        if self._keep == "boxes" and BOX in self.vocab:
            request.skip_special_tokens = False
        return request

    def _ends_turn(self, delta_text: str, delta_token_ids: Sequence[int]) -> bool:
        last = delta_token_ids[-1] if delta_token_ids else None
        # Where </answer> is an end-of-sequence token, vLLM drops its text; elsewhere it does not.
        return last in self._turn_ends or (last == self._end_answer and not delta_text)


def _opens_thinking(request: ChatCompletionRequest | ResponsesRequest) -> bool:
    """Whether the answer continues an assistant's message within its thinking."""
    if not getattr(request, "continue_final_message", False):
        return False
    content = request.messages[-1].get("content") or ""
    if not isinstance(content, str):
        content = "".join(part.get("text") or "" for part in content)
    return content.rfind(THINK) > content.rfind(END_THINK)
