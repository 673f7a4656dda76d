# SPDX-License-Identifier: Apache-2.0
"""The ways to switch the thinking off, and what then ends the prompt."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.checkpoints import TINY
from vllm_glm41v_npu.patches import closed_thinking
from vllm_glm41v_npu.serving.thinking_switch import closes_thinking, closing, wanted_thinking

CLOSED = "<think></think><answer>"
OUR_MODEL = SimpleNamespace(hf_config=SimpleNamespace(model_type="glm4v"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


@pytest.mark.parametrize(
    ("kwargs", "wanted"),
    [
        ({}, None),
        ({"enable_thinking": None, "thinking": None}, None),
        ({"enable_thinking": False}, False),
        ({"enable_thinking": True}, True),
        ({"thinking": False}, False),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, True),
        ({"thinking": {"type": "adaptive"}}, True),
        ({"enable_thinking": True, "thinking": {"type": "disabled"}}, True),
    ],
)
def test_what_is_wanted(kwargs: dict[str, Any], wanted: bool | None) -> None:
    """Guards each way of saying it, and which one counts."""
    assert wanted_thinking(kwargs) is wanted


@pytest.mark.parametrize(
    "kwargs",
    [
        {"enable_thinking": "false"},
        {"enable_thinking": 0},
        {"thinking": "disabled"},
        {"thinking": {}},
        {"thinking": {"type": ["disabled"]}},
        {"thinking": {"type": "off"}},
    ],
)
def test_what_cannot_be_meant(kwargs: dict[str, Any]) -> None:
    """Guards against a wish that is silently not granted."""
    (name,) = kwargs
    with pytest.raises(ValueError, match=f"^{name} is .*; expected "):
        wanted_thinking(kwargs)


def test_a_message_that_goes_on_is_left_alone() -> None:
    """Guards prompts that end within a message: its sender began it."""
    off = {"enable_thinking": False}
    assert closes_thinking(off)
    assert not closes_thinking(off | {"continue_final_message": True})
    assert not closes_thinking(off | {"add_generation_prompt": False})


@pytest.mark.parametrize(
    ("end", "missing"),
    [
        ("<|assistant|>\n", CLOSED),
        ("<|assistant|>\n<think>", "</think><answer>"),
        ("<|assistant|>\n<think>\n", "</think><answer>"),
        ("<|assistant|>\n<think></think>", ""),
        ("<|assistant|>\n<think></think>\n", ""),
        ("<|assistant|>\n<think></think><answer>", ""),
        ("<think>a</think>b<|user|>\n?<|assistant|>\n", CLOSED),
    ],
)
def test_any_template(end: str, missing: str) -> None:
    """Guards templates that open the thinking, or close it, themselves."""
    assert closing("[gMASK]<sop>" + end, {"<think>", "</think>", "<answer>"}) == missing


def test_other_vocabularies() -> None:
    """Guards checkpoints of the family without some of the tags."""
    assert closing("<|assistant|>", {"<think>", "</think>"}) == "<think></think>"
    assert closing("<|assistant|>", {"<|assistant|>"}) == ""


TEMPLATES = {
    "ours": None,
    "switch": "{{ messages[0].content }}<|assistant|>\n"
    "{{ '<think></think>\n' if enable_thinking is defined and not enable_thinking else '' }}",
}


@pytest.mark.parametrize("tokenize", [False, True])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    "kwargs", [{"enable_thinking": False}, {"thinking": {"type": "disabled"}}, {"thinking": False}]
)
def test_rendered_prompts(
    tokenizer: Any, kwargs: dict[str, Any], template: str, tokenize: bool
) -> None:
    """Guards the rendering that every route and offline use shares, as text and as ids."""
    from vllm.renderers import hf

    original = getattr(hf.safe_apply_chat_template, "__wrapped__", hf.safe_apply_chat_template)
    options: dict[str, Any] = {"add_generation_prompt": True, "tokenize": tokenize}
    options["chat_template"] = TEMPLATES[template] or tokenizer.chat_template
    messages = [{"role": "user", "content": "hi"}]

    def rendered(render: Any, **more: Any) -> str:
        prompt = render(OUR_MODEL, tokenizer, messages, **options, **more)
        return tokenizer.decode(prompt) if tokenize else prompt

    plain = rendered(original)
    if template == "ours":  # when this fails, vLLM closes the thinking, and our patch can go
        assert rendered(original, **kwargs) == plain
    closed = {"ours": CLOSED, "switch": "<think></think>\n"}[template]
    assert rendered(closed_thinking._closing(original), **kwargs) == plain + closed
    assert rendered(closed_thinking._closing(original)) == plain
