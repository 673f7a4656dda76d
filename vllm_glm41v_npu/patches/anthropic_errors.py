# SPDX-License-Identifier: Apache-2.0
"""Answer a caller's error on Anthropic's routes with 400, as all other routes do.

The router of /v1/messages and /v1/messages/count_tokens in vLLM 0.23.0 catches every exception, and
answers 500 with a traceback in the log. Can go when it asks `create_error_response` first.
"""

from __future__ import annotations

import functools
from http import HTTPStatus
from typing import Any


def apply() -> None:
    """Let the handlers return what the router would take for a failure of the server."""
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages

    for name in ("create_messages", "count_tokens"):
        answer = getattr(AnthropicServingMessages, name)
        setattr(AnthropicServingMessages, name, _refusing(answer))


def _refusing(answer: Any) -> Any:
    @functools.wraps(answer)
    async def refusing(*arguments: Any, **options: Any) -> Any:
        from vllm.entrypoints.serve.utils.error_response import create_error_response

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
