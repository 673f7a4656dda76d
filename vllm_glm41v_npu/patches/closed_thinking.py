# SPDX-License-Identifier: Apache-2.0
"""Close the thinking in the prompt where `chat_template_kwargs` switch it off.

vLLM 0.23.0 hands `enable_thinking` to the chat template and drops it, without a word, where the
template has no such variable; GLM-4.1V's has none. Ends when the checkpoint's template has it.
"""

from __future__ import annotations

from typing import Any

from vllm_glm41v_npu.family import is_ours
from vllm_glm41v_npu.patches import wrap


def apply() -> None:
    """Render the chats of every route, and offline, with the thinking closed if it has to be."""
    from vllm.renderers import hf

    wrap(hf, "safe_apply_chat_template", _closing)


def _closing(render: Any) -> Any:
    def safe_apply_chat_template(
        model_config: Any, tokenizer: Any, conversation: Any, **options: Any
    ) -> str | list[int]:
        from vllm_glm41v_npu.serving.thinking_switch import (
            ENABLE_THINKING,
            closes_thinking,
            closing,
            wanted_thinking,
        )

        if not is_ours(model_config):  # whose template has switches of its own
            return render(model_config, tokenizer, conversation, **options)
        wanted = wanted_thinking(options)
        if wanted is not None:
            options[ENABLE_THINKING] = wanted
        prompt = render(model_config, tokenizer, conversation, **options)
        if not closes_thinking(options):
            return prompt
        vocabulary = tokenizer.get_vocab()
        if isinstance(prompt, str):
            return prompt + closing(prompt, vocabulary)
        end = closing(tokenizer.decode(prompt[-8:]), vocabulary)
        return prompt + tokenizer.encode(end, add_special_tokens=False)

    return safe_apply_chat_template
