# SPDX-License-Identifier: Apache-2.0
"""The switch of a request for thinking: its forms, and the end of a prompt without thinking.

GLM-4.1V has no switch of its own. It answers at once when its turn begins with an empty thinking,
`<think></think><answer>`; so this is written into the prompt, whatever the chat template.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from vllm.exceptions import VLLMValidationError

from vllm_glm41v_npu.serving.thinking import ANSWER, END_THINK, THINK

ENABLE_THINKING, THINKING = "enable_thinking", "thinking"
TYPES = {"enabled": True, "disabled": False, "adaptive": True, "auto": True}
"""Values of `thinking.type`: those of Z.ai's API and Anthropic's."""


def wanted_thinking(kwargs: Mapping[str, Any]) -> bool | None:
    """Return True or False where `chat_template_kwargs` switch thinking on or off, else None.

    `enable_thinking` counts before `thinking`, which is a truth value or an object with a `type`.

    Raises VLLMValidationError about any other value.
    """
    enabled = kwargs.get(ENABLE_THINKING)
    if enabled is None:
        return of_thinking(kwargs.get(THINKING))
    if not isinstance(enabled, bool):
        raise VLLMValidationError(f"{ENABLE_THINKING} is {enabled!r}; expected true or false.")
    return enabled


def of_thinking(value: Any) -> bool | None:
    """Return the same for a `thinking` alone, as Z.ai's API and Anthropic's have it in the body."""
    if value is None or isinstance(value, bool):
        return value
    kind = value.get("type") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in TYPES:
        raise VLLMValidationError(
            f'thinking is {value!r}; expected {{"type": "enabled"}} or {{"type": "disabled"}}.'
        )
    return TYPES[kind]


def closes_thinking(kwargs: Mapping[str, Any]) -> bool:
    """Return True where a prompt with these `chat_template_kwargs` has to close the thinking.

    A message that the model continues stays as its sender began it.
    """
    begins_turn = kwargs.get("add_generation_prompt", True)
    goes_on = kwargs.get("continue_final_message", False)
    return bool(begins_turn) and not goes_on and wanted_thinking(kwargs) is False


def closing(prompt: str, vocabulary: Container[str]) -> str:
    """Return the text to add to `prompt` so that the thinking is closed.

    It is empty where the template closed it already, or where the vocabulary has no thinking.
    """
    end = prompt.rstrip()
    if END_THINK not in vocabulary or end.endswith((END_THINK, ANSWER)):
        return ""
    begun = "" if end.endswith(THINK) else THINK
    return begun + END_THINK + (ANSWER if ANSWER in vocabulary else "")
