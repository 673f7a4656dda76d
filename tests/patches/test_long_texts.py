# SPDX-License-Identifier: Apache-2.0
"""Texts of which vLLM counts or truncates the tokens: their characters are limited."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.tokenize.protocol import TokenizeChatRequest, TokenizeCompletionRequest
from vllm.exceptions import VLLMValidationError
from vllm.renderers import TokenizeParams

from vllm_glm41v_npu.patches import long_texts

CONFIG: Any = SimpleNamespace(max_model_len=2048, logits_processors=None)
TOKENIZER: Any = SimpleNamespace(max_chars_per_token=2000)
UNLIMITED = [
    TokenizeCompletionRequest(prompt="hi"),
    TokenizeChatRequest(messages=[{"role": "user", "content": "hi"}]),
    CompletionRequest(prompt="hi", max_tokens=1, truncate_prompt_tokens=5),
]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str], str]:
    """The check of a request's text, patched, until the test ends."""
    monkeypatch.setattr(TokenizeParams, "_text_len_check", _vllms_own())
    long_texts.apply()
    return lambda request, text: request.build_tok_params(CONFIG)._text_len_check(TOKENIZER, text)


def _vllms_own() -> Any:
    own = TokenizeParams._text_len_check
    return getattr(own, "__wrapped__", own)


@pytest.mark.parametrize("request_", UNLIMITED, ids=lambda request: type(request).__name__)
def test_texts_without_a_limit(check: Callable[[Any, str], str], request_: Any) -> None:
    """Guards against a text that holds the one thread for tokens for minutes."""
    text = "a" * long_texts.MAX_CHARACTERS
    assert check(request_, text) == text
    with pytest.raises(VLLMValidationError, match="1048577 characters"):
        check(request_, text + "a")


def test_other_texts(check: Callable[[Any, str], str]) -> None:
    """Guards against a second limit where vLLM has one already."""
    text = "a" * (long_texts.MAX_CHARACTERS + 1)
    assert check(CompletionRequest(prompt="hi", max_tokens=1), text) == text


@pytest.mark.parametrize("request_", UNLIMITED, ids=lambda request: type(request).__name__)
def test_vllm_still_takes_any_text(request_: Any) -> None:
    """Guards the patch: it can go when vLLM refuses such a text itself."""
    params = request_.build_tok_params(CONFIG)
    text = "a" * 10_000_000
    assert _vllms_own()(params, TOKENIZER, text) == text
