# SPDX-License-Identifier: Apache-2.0
"""Tests of thinking and tools, which test_mindie_server.py runs on its server."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.end_to_end.mindie import NUMBER, PICTURE, QUESTION, THINKING, WRITTEN, chat
from tests.end_to_end.servers import THINKING_OFF, data_uri
from tests.lane import ON_CPU


def test_reasoning(server: httpx.Client) -> None:
    """Guards --reasoning-parser glm41v in a server: whole, streamed, and what requests choose."""
    message = chat(server).json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == (THINKING, NUMBER)
    lines = chat(server, stream=True).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("reasoning") or "" for delta in deltas) == THINKING
    assert "".join(delta.get("content") or "" for delta in deltas) == NUMBER
    kept = chat(server, chat_template_kwargs={"keep_tags": "all"}).json()["choices"][0]["message"]
    assert (kept["reasoning"], kept["content"]) == (None, WRITTEN)
    wrong = chat(server, chat_template_kwargs={"keep_tags": "some"})
    assert wrong.status_code == 400
    assert "expected one of 'none', 'boxes', 'all'" in wrong.json()["error"]["message"]


def test_reasoning_with_a_grammar(server: httpx.Client) -> None:
    """Guards structured output after the thinking."""
    bound = chat(server, structured_outputs={"choice": ["yes", "no"]}).json()
    message = bound["choices"][0]["message"]
    assert message["reasoning"] == THINKING
    assert message["content"] in ("yes", "no")
    options = {"structured_outputs": {"choice": ["yes", "no"]}, "include_reasoning": False}
    message = chat(server, **options).json()["choices"][0]["message"]
    assert message["reasoning"] is None
    assert message["content"] in ("yes", "no")


def streamed(server: httpx.Client, **fields: Any) -> dict[str, Any]:
    """The message that a stream's deltas make."""
    lines = chat(server, stream=True, **fields).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"] for event in events]
    message: dict[str, Any] = {
        name: "".join(delta.get(name) or "" for delta in deltas) or None
        for name in ("reasoning", "content")
    }
    calls = [call["function"] for delta in deltas for call in delta.get("tool_calls") or ()]
    return message | {"arguments": "".join(call.get("arguments") or "" for call in calls)}


def whole(server: httpx.Client, **fields: Any) -> dict[str, Any]:
    """The same of a whole answer."""
    message = chat(server, **fields).json()["choices"][0]["message"]
    arguments = "".join(call["function"]["arguments"] for call in message.get("tool_calls") or ())
    found = {name: message[name] or None for name in ("reasoning", "content")}
    return found | {"arguments": arguments}


@pytest.mark.parametrize("fields", THINKING_OFF)
def test_thinking_switched_off(server: httpx.Client, fields: dict[str, Any]) -> None:
    """Guards each way to switch it off, whole and streamed, on each route."""
    found = whole(server, **fields)
    assert found == streamed(server, **fields)
    assert (found["reasoning"], found["arguments"]) == (None, "")
    assert found["content"].isdecimal()
    content = [{"type": "image_url", "image_url": data_uri(PICTURE.read_bytes())}]
    message = {"role": "user", "content": [*content, {"type": "text", "text": QUESTION}]}
    common = {"model": "glm4v", "temperature": 0, **fields}
    answer = server.post("/v1/responses", json={**common, "input": [message]}).json()
    assert [output["content"][0]["text"] for output in answer["output"]] == [found["content"]]
    body = {**common, "messages": [message], "max_tokens": 32}
    answer = server.post("/v1/messages", json=body).json()
    assert [block["text"] for block in answer["content"]] == [found["content"]]


def test_reasoning_left_out(server: httpx.Client) -> None:
    """Guards include_reasoning in a stream."""
    found = whole(server, include_reasoning=False)
    assert found == streamed(server, include_reasoning=False)
    assert (found["reasoning"], found["content"]) == (None, NUMBER)


@pytest.mark.parametrize("max_tokens", [20, 40, 60])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "tell"}}])
def test_calls_of_tools(server: httpx.Client, choice: Any, max_tokens: int) -> None:
    """Guards answers that have to call a tool: cut off anywhere, whole and streamed alike."""
    number = {"type": "string", "pattern": "^[0-9]{4}$"}
    parameters: dict[str, Any] = {"type": "object", "properties": {"n": number}, "required": ["n"]}
    parameters["additionalProperties"] = False
    tools = [{"type": "function", "function": {"name": "tell", "parameters": parameters}}]
    fields = {"tools": tools, "tool_choice": choice, "max_tokens": max_tokens}
    found = whole(server, **fields)
    assert found == streamed(server, **fields)
    assert found["reasoning"] == THINKING
    assert found["arguments"] or found["content"]


def test_no_thinking(server: httpx.Client) -> None:
    """Guards a prompt that closes the thinking, as docs/serving.md describes."""
    picture = {"type": "image_url", "image_url": {"url": PICTURE.as_uri()}}
    messages = [
        {"role": "user", "content": [picture, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": "<think></think><answer>"},
    ]
    options = {"continue_final_message": True, "add_generation_prompt": False}
    message = chat(server, messages=messages, **options).json()["choices"][0]["message"]
    assert message["reasoning"] is None
    assert message["content"]
    assert "<" not in message["content"]


def test_reasoning_with_a_budget(server: httpx.Client) -> None:
    """Guards thinking_token_budget, and against its silent loss on an NPU."""
    response = chat(server, thinking_token_budget=1)
    if ON_CPU:
        assert response.json()["choices"][0]["message"]["reasoning"] == "I"
    else:
        assert response.status_code == 400
        assert "has no budget for the thinking" in response.json()["error"]["message"]
