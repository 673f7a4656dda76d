# SPDX-License-Identifier: Apache-2.0
"""The application around vLLM's routes: bodies checked first, a caller's errors answered calmly."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.testclient import TestClient
from pydantic import BaseModel, TypeAdapter
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.serve.utils.api_utils import validate_json_request
from vllm.entrypoints.serve.utils.server_utils import exception_handler
from vllm.exceptions import VLLMNotFoundError, VLLMValidationError

from vllm_glm41v_npu.serving.refused_requests import improve

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
ERRORS = {
    "validation": (VLLMValidationError("no", parameter="a"), 400),
    "value": (ValueError("no"), 400),
    "overflow": (OverflowError("no"), 400),
    "unknown": (VLLMNotFoundError("no"), 404),
    "missing": (NotImplementedError("no"), 501),
}


class Other(BaseModel):
    number: int


@pytest.fixture
def app() -> FastAPI:
    """An application with the handlers of vLLM's, and routes that say what they got."""
    app = FastAPI()
    app.state.args = SimpleNamespace(log_error_stack=False)
    app.exception_handler(Exception)(exception_handler)

    @app.post(CHAT, dependencies=[Depends(validate_json_request)])
    async def chat(request: ChatCompletionRequest) -> Any:
        return {"messages": request.messages, "kwargs": request.chat_template_kwargs}

    @app.post(MESSAGES, dependencies=[Depends(validate_json_request)])
    async def messages(raw_request: Request) -> Any:
        return TypeAdapter(Other).validate_python(await raw_request.json())

    @app.post("/fail/{name}")
    async def fail(name: str) -> None:
        raise ERRORS[name][0] if name in ERRORS else RuntimeError("a fault of ours")

    return app


@pytest.mark.parametrize("is_built", [False, True])
def test_bodies_are_put_into_form(app: FastAPI, is_built: bool) -> None:
    """Guards what vLLM's own classes get, also where the middleware was built before."""
    if is_built:
        app.middleware_stack = app.build_middleware_stack()
    client = TestClient(improve(app))
    part = {"type": "image", "image": "https://a/b.png"}
    body = {"messages": [{"role": "user", "content": [part]}], "thinking": {"type": "disabled"}}
    answer = client.post(CHAT, json=body).json()
    own = {"type": "image_url", "image_url": {"url": "https://a/b.png"}}
    assert answer["messages"] == [{"role": "user", "content": [own]}]
    assert answer["kwargs"] == {"enable_thinking": False}
    refused = client.post(CHAT, json={"messages": []})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith("messages is empty; expected")


@pytest.mark.parametrize("name", ERRORS)
def test_callers_errors(app: FastAPI, name: str) -> None:
    """Guards the log and the connection: what no handler takes goes on to the server."""
    plain = app.exception_handlers.copy()
    client = TestClient(improve(app))  # raises what goes on to the server
    response = client.post(f"/fail/{name}")
    assert response.status_code == ERRORS[name][1]
    assert response.json()["error"]["message"].split()[0] == "no"
    app.exception_handlers = plain
    app.middleware_stack = None
    with pytest.raises(type(ERRORS[name][0])):  # vLLM's own; or our handlers can go
        TestClient(app).post(f"/fail/{name}")


def test_our_own_faults(app: FastAPI) -> None:
    """Guards tracebacks of real faults."""
    with pytest.raises(RuntimeError, match="a fault of ours"):
        TestClient(improve(app)).post("/fail/other")


def test_anthropics_form(app: FastAPI) -> None:
    """Guards clients of /v1/messages, which look for the kind of an error in another place."""
    client = TestClient(improve(app))
    for body, sentence in [
        ({"messages": []}, "messages is empty"),
        ({"number": "a"}, "number is 'a'"),
    ]:
        response = client.post(MESSAGES, json=body)
        assert response.status_code == 400
        answer = response.json()
        assert answer["type"] == "error"
        assert answer["error"]["type"] == "invalid_request_error"
        assert answer["error"]["message"].startswith(sentence)
        assert "\n" not in answer["error"]["message"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "The body is empty; expected a JSON object"),
        (b"{", "The body is no JSON: Expecting property name enclosed in double quotes at char"),
        (b"\xff", "The body is no JSON .*can't decode byte 0xff"),
        (b"[1]", r"The body is \[1\]; expected a JSON object"),
    ],
)
def test_bodies_that_are_no_objects(app: FastAPI, content: bytes, sentence: str) -> None:
    """Guards bodies that cannot be read."""
    client = TestClient(improve(app))
    headers = {"Content-Type": "application/json"}
    response = client.post(CHAT, content=content, headers=headers)
    assert response.status_code == 400
    assert re.match(sentence, response.json()["error"]["message"])


def test_another_content_type(app: FastAPI) -> None:
    """Guards vLLM's own check, in whose place ours stands."""
    response = TestClient(improve(app)).post(
        CHAT, content=b"a=1", headers={"Content-Type": "text/plain"}
    )
    assert response.status_code == 400
    assert "Only 'application/json' is allowed" in response.json()["error"]["message"]
