# SPDX-License-Identifier: Apache-2.0
"""Refusals of vLLM's server: bodies are checked early, and errors are answered in a sentence."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from jinja2 import TemplateError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from vllm.entrypoints.serve.utils.api_utils import validate_json_request
from vllm.entrypoints.serve.utils.server_utils import exception_handler
from vllm.exceptions import VLLMNotFoundError, VLLMValidationError

from vllm_glm41v_npu.serving.asgi import MESSAGES, route_path
from vllm_glm41v_npu.serving.chat_request import prepare
from vllm_glm41v_npu.serving.field_errors import sentences
from vllm_glm41v_npu.upstream import create_error_response

CALLERS_ERRORS = (ValueError, OverflowError, NotImplementedError, TemplateError, VLLMNotFoundError)
"""Errors that vLLM answers with 4xx or 501. Without a handler of their own, they close the
connection and leave a traceback in the log."""

ANTHROPIC = {400: "invalid_request_error", 404: "not_found_error"}


def improve(app: FastAPI) -> FastAPI:
    """Check bodies before vLLM does, and answer a caller's errors in a sentence."""
    app.dependency_overrides[validate_json_request] = check_body
    app.exception_handler(RequestValidationError)(refuse_fields)
    app.exception_handler(HTTPException)(refuse_unreadable)
    for kind in (*CALLERS_ERRORS, VLLMValidationError):
        app.exception_handler(kind)(refuse)
    if app.middleware_stack is not None:  # vLLM's SageMaker routes build it early
        app.middleware_stack = app.build_middleware_stack()
    return app


async def check_body(raw_request: Request) -> None:
    """Check a body before pydantic does; a dependency of every route that takes JSON."""
    await validate_json_request(raw_request)
    try:
        body = await raw_request.json()
    except (ValueError, RecursionError) as error:
        found = f"is no JSON ({error})" if await raw_request.body() else "is empty"
        raise VLLMValidationError(f"The body {found}; expected a JSON object.") from error
    prepare(route_path(raw_request.scope), body)


async def refuse_unreadable(request: Request, error: HTTPException) -> Response:
    """Answer 400 about a body that FastAPI could not decode; other errors as FastAPI does."""
    cause = error.__cause__
    if error.status_code != 400 or cause is None:
        return await http_exception_handler(request, error)
    sentence = f"The body is no JSON ({cause}); expected a JSON object."
    return await refuse(request, VLLMValidationError(sentence))


async def refuse(request: Request, error: Exception) -> JSONResponse:
    """Answer as vLLM does, and Anthropic's clients in their form."""
    if isinstance(error, ValidationError):  # from a route that validates its body itself
        error = VLLMValidationError(sentences(error.errors()))
    answer = await exception_handler(request, error)
    return _in_clients_form(request, answer, create_error_response(error))


async def refuse_fields(request: Request, error: RequestValidationError) -> JSONResponse:
    """Answer 400 about fields that pydantic found wrong."""
    sentence = sentences(error.errors(), error.body)
    return await refuse(request, VLLMValidationError(sentence, parameter=_parameter(error)))


def _parameter(error: RequestValidationError) -> str | None:
    """Return the field that vLLM's own validators name, or None."""
    causes = (each.get("ctx", {}).get("error") for each in error.errors() if isinstance(each, dict))
    found = (cause.parameter for cause in causes if isinstance(cause, VLLMValidationError))
    return next(found, None)


def _in_clients_form(request: Request, answer: JSONResponse, response: Any) -> JSONResponse:
    if MESSAGES not in request.url.path:
        return answer
    code = response.error.code
    content = {"type": ANTHROPIC.get(code, response.error.type), "message": response.error.message}
    return JSONResponse({"type": "error", "error": content}, status_code=code)
