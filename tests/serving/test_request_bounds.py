# SPDX-License-Identifier: Apache-2.0
"""The largest numbers and the longest lists of words that a request may have."""

from __future__ import annotations

import pytest

from tests.serving.test_chat_request import CHAT, body_of
from vllm_glm41v_npu.serving.chat_request import prepare


@pytest.mark.parametrize("name", ["stop_token_ids", "vllm_xargs", "kv_transfer_params"])
@pytest.mark.parametrize("number", [-(2**63), 2**63 - 1, -(2**63) - 1, 2**63])
def test_numbers_that_go_to_the_engine(name: str, number: int) -> None:
    """Guards numbers of over 64 bits, at any depth, which vLLM answers with 500."""
    body = body_of(CHAT, "hi", **{name: [1, {"a": [number]}]})
    if number in (-(2**63), 2**63 - 1):
        prepare(CHAT, body)
        return
    with pytest.raises(ValueError, match=f"{name} has .*; expected numbers of at most 64 bits"):
        prepare(CHAT, body)


@pytest.mark.parametrize("name", ["stop", "bad_words"])
def test_the_most_words(name: str) -> None:
    """Guards the event loop, which long lists hold up for seconds."""
    prepare(CHAT, body_of(CHAT, "hi", **{name: ["a"] * 256}))
    with pytest.raises(ValueError, match=f"{name} has 257 words; expected at most 256"):
        prepare(CHAT, body_of(CHAT, "hi", **{name: ["a"] * 257}))
