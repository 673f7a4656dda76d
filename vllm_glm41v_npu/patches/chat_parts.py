# SPDX-License-Identifier: Apache-2.0
"""Take pictures and videos in any form that clients use, offline too.

vLLM 0.23.0 refuses `{"type": "image", "image": ...}`, transformers' form, and a plain string as
`image_url` beside a type. Bodies of the server are put into its form before; this is for
conversations that no route has seen. Ends when vLLM's `MM_PARSER_MAP` takes them.
"""

from __future__ import annotations

from typing import Any

from vllm_glm41v_npu.family import is_ours
from vllm_glm41v_npu.patches import wrap


def apply() -> None:
    """Put the parts of each message into vLLM's form before it parses them."""
    from vllm.renderers import hf

    for name in ("parse_chat_messages", "parse_chat_messages_async"):
        wrap(hf, name, _in_form)


def _in_form(parse: Any) -> Any:
    def parse_chat_messages(
        messages: Any, model_config: Any, *arguments: Any, **options: Any
    ) -> Any:
        if is_ours(model_config):
            messages = [
                _message(f"messages[{number}]", each) for number, each in enumerate(messages)
            ]
        return parse(messages, model_config, *arguments, **options)

    return parse_chat_messages


def _message(name: str, message: Any) -> Any:
    """Return a copy with its parts in vLLM's form; anything but a list of parts stays."""
    from vllm_glm41v_npu.serving.chat_parts import for_chat

    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return message
    parts = [for_chat(f"{name}.content[{number}]", part) for number, part in enumerate(content)]
    return {**message, "content": parts}
