# SPDX-License-Identifier: Apache-2.0
"""Bodies that pass vLLM's own check, and are 500 or half lost behind it."""

from __future__ import annotations

import pytest

from tests.serving.test_chat_request import CHAT, PICTURES, RESPONSES, body_of
from vllm_glm41v_npu.serving.chat_request import prepare


def test_repeated_pictures() -> None:
    """Guards echo of a message with a picture, which vLLM answers with 500; of text it works."""
    picture, text = PICTURES["as OpenAI"], {"type": "text", "text": "hi"}
    fields = {"echo": True, "add_generation_prompt": False}
    with pytest.raises(ValueError, match="^echo repeats the last message as text"):
        prepare(CHAT, body_of(CHAT, [text, picture], **fields))
    with pytest.raises(ValueError, match="^echo repeats the last message as text"):
        prepare(CHAT, body_of(CHAT, [text], stream=True, **fields))
    prepare(CHAT, body_of(CHAT, [text], **fields))
    prepare(CHAT, body_of(CHAT, "hi", stream=True, **fields))
    prepare(CHAT, body_of(CHAT, [picture], echo=True))


@pytest.mark.parametrize("name", ["stop_token_ids", "vllm_xargs", "kv_transfer_params"])
def test_numbers_for_the_engine(name: str) -> None:
    """Guards numbers that cannot be sent to the engine: vLLM answers 500 without a word."""
    for number in (2**70, -(2**70)):
        with pytest.raises(ValueError, match=f"^{name} has .*; expected numbers of at most 64"):
            prepare(CHAT, body_of(CHAT, "hi", **{name: {"a": [1, number]}}))
    prepare(CHAT, body_of(CHAT, "hi", **{name: [2**63 - 1, "a", None]}))


@pytest.mark.parametrize(
    "parts", [[], [("refusal", "a")], [("output_text", "a"), ("refusal", "b")]]
)
def test_earlier_answers(parts: list[tuple[str, str]]) -> None:
    """Guards answers in /v1/responses: 500 without a part or with a refusal, and the rest lost."""
    fields = {"refusal": "refusal", "output_text": "text"}
    content = [{"type": kind, fields[kind]: text} for kind, text in parts]
    body = {"input": [{"role": "assistant", "content": content}]}
    prepare(RESPONSES, body)
    text = "".join(text for _, text in parts)
    assert body["input"][0]["content"] == [{"type": "output_text", "text": text, "annotations": []}]


def test_items_of_responses() -> None:
    """Guards items that vLLM takes for messages without a role, and answers with 500."""
    call = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "a"}
    prepare(RESPONSES, {"input": [call]})
    with pytest.raises(ValueError, match=r"^input\[0\] is of type 'item_reference'; expected "):
        prepare(RESPONSES, {"input": [{"type": "item_reference", "id": "a"}]})
