# SPDX-License-Identifier: Apache-2.0
"""Refuse texts of any length that vLLM means to count, or to truncate.

vLLM 0.23.0 compares a prompt's characters with the context before it tokenizes, but for `/tokenize`
and for prompts with `truncate_prompt_tokens`. All requests share one thread for tokens: a text of
39 MB held it for minutes, took 7 GiB, and no other request was answered, also once the client had
left. Can go when vLLM refuses such texts by their characters.
"""

from __future__ import annotations

import functools
from typing import Any

MAX_CHARACTERS = 1 << 20
"""Characters of a text with no limit of its own; 65,536 tokens of English are some 300,000."""


def apply() -> None:
    """Refuse them before they are tokenized."""
    from vllm.exceptions import VLLMValidationError
    from vllm.renderers import TokenizeParams

    check = TokenizeParams._text_len_check

    @functools.wraps(check)
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

    TokenizeParams._text_len_check = check_length
