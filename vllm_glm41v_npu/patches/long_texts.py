# SPDX-License-Identifier: Apache-2.0
"""Refuse texts of any length that vLLM means to count, or to truncate.

vLLM 0.23.0 compares a prompt's characters with the context before it tokenizes, but for `/tokenize`
and for prompts with `truncate_prompt_tokens`. All requests share one thread for tokens: a text of
39 MB held it for minutes, took 7 GiB, and no other request was answered, also once the client had
left. Ends when vLLM refuses such texts by their characters.
"""

from __future__ import annotations

from typing import Any

from vllm_glm41v_npu.patches import wrap

MAX_CHARACTERS = 1 << 20
"""The longest text without a limit of its own; 65,536 tokens of English are 300,000 or so."""


def apply() -> None:
    """Refuse such texts before they are tokenized."""
    from vllm.renderers import TokenizeParams

    wrap(TokenizeParams, "_text_len_check", _refusing_long)


def _refusing_long(check: Any) -> Any:
    from vllm.exceptions import VLLMValidationError

    def check_length(self: Any, tokenizer: Any, text: str) -> str:
        unlimited = self.max_input_tokens is None or self.truncate_prompt_tokens is not None
        if unlimited and len(text) > MAX_CHARACTERS:
            raise VLLMValidationError(
                f"The text has {len(text)} characters. At most {MAX_CHARACTERS} are counted or "
                "truncated, since all requests share the tokenizer. Send it in several parts, or "
                "truncate it before it is sent.",
                parameter="input_text",
                value=len(text),
            )
        return check(self, tokenizer, text)

    return check_length
