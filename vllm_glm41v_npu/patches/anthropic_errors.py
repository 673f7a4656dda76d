# SPDX-License-Identifier: Apache-2.0
"""Answer a caller's error on Anthropic's routes with 400, as all other routes do.

The router of /v1/messages and /v1/messages/count_tokens in vLLM 0.23.0 catches every exception, and
answers 500 with a traceback in the log. That is also its answer where a call of a tool is cut off
by `max_tokens`, as its arguments are no JSON yet. Ends when the router asks
`create_error_response` first, and the converter takes arguments that are cut off.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from vllm_glm41v_npu.patches import wrap


def apply() -> None:
    """Let the handlers return the errors that the router would take for failures of the server."""
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages

    for name in ("create_messages", "count_tokens"):
        wrap(AnthropicServingMessages, name, _refusing)
    wrap(AnthropicServingMessages, "messages_full_converter", _showing_what_is_cut_off)


def _refusing(answer: Any) -> Any:
    async def refusing(*arguments: Any, **options: Any) -> Any:
        from vllm_glm41v_npu.upstream import create_error_response

        try:
            return await answer(*arguments, **options)
        except Exception as error:
            response = create_error_response(error)
            if response.error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            if response.error.code == HTTPStatus.BAD_REQUEST:
                response.error.type = "invalid_request_error"  # Anthropic's word for it
            return response

    return refusing


def _showing_what_is_cut_off(convert: Any) -> Any:
    def messages_full_converter(self: Any, response: Any) -> Any:
        message = response.choices[0].message
        whole: list[Any] = []
        cut_off: list[Any] = []
        for call in message.tool_calls:
            (whole if _is_object(call.function.arguments) else cut_off).append(call)
        message.tool_calls = whole
        parts = [message.content or "", *(call.function.arguments for call in cut_off)]
        message.content = "".join(parts) or None
        return convert(self, response)

    return messages_full_converter


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
