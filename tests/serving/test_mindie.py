# SPDX-License-Identifier: Apache-2.0
"""MindIE's routes as middleware: answers and frames, over an application that is not vLLM.

tests/end_to_end/test_mindie_server.py has the real one.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.serving.mindie_app import Inner, Response, call, events
from vllm_glm41v_npu.serving.mindie.chat import chat_body
from vllm_glm41v_npu.serving.mindie.request import MAX_ITER_TIMES_VARIABLE
from vllm_glm41v_npu.serving.mindie.routes import MindIERoutes


def delta(index: int = 0, reason: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": index, "finish_reason": reason}
    if "content" in fields or "reasoning" in fields:
        fields = {"delta": fields}
    return {"choices": [choice | fields]}


def test_whole_answers_of_the_vllm_style() -> None:
    """Guards the prompt's text, one space and the answer, with characters as they are."""
    message = {"content": "一只猫", "reasoning": None}
    inner = Inner((200, [{"choices": [{"message": message}, {"message": {"content": "B"}}]}]))
    response = call(inner, {"prompt": [{"type": "text", "text": "什么?"}]})
    assert response == Response(
        200, "application/json", ['{"text":["什么? 一只猫","什么? B"]}'.encode()]
    )
    assert inner.saw_disconnect


def test_the_inner_request() -> None:
    """Guards the route, the root path, the length and the client's own headers, such as its key."""
    inner = Inner((200, [{"choices": [{"text": "lo"}]}]))
    response = call(inner, {"prompt": "Hel", "max_tokens": 5})
    assert response is not None
    assert response.json == {"text": ["Hel lo"]}
    ((scope, body),) = inner.asked
    assert scope["path"] == "/base/v1/completions"
    assert scope["raw_path"] == b"/base/v1/completions"
    assert body["prompt"] == "Hel"
    headers = dict(scope["headers"])
    assert headers[b"Authorization"] == b"Bearer key"
    assert headers[b"content-length"] == b"%d" % len(json.dumps(body))
    assert [name for name, _ in scope["headers"]].count(b"content-length") == 1


def test_reasoning_of_another_parser_is_not_lost() -> None:
    """Guards servers with a reasoning parser that knows no keep_tags."""
    message = {"reasoning": "Hm. ", "content": "7"}
    response = call(Inner((200, [{"choices": [{"message": message}]}])), {"prompt": "a"})
    assert response is not None
    assert response.json == {"text": ["a Hm. 7"]}


def test_frames_of_the_vllm_style() -> None:
    """Guards frames that end in a zero byte, one for each event with text, and no [DONE]."""
    stream = events(
        delta(content=""),
        delta(content="a\0"),
        delta(content="猫"),
        delta(reason="stop", content=""),
    )
    body = {"prompt": [{"type": "text", "text": "x"}], "stream": True}
    response = call(Inner((200, stream)), body)
    frames = ['{"text":["a\\u0000"]}\0', '{"text":["猫"]}\0', '{"text":[""]}\0']
    assert response == Response(200, "text/event-stream", [frame.encode() for frame in frames])


def test_frames_of_several_answers() -> None:
    """Guards the place of each answer in a frame."""
    stream = events(delta(1, text="b"), delta(0, text="a"), delta(0, "length", text=""))
    body = {"prompt": "x", "stream": True, "n": 2, "temperature": 1}
    response = call(Inner((200, stream)), body)
    assert response is not None
    assert response.chunks == [
        b'{"text":["","b"]}\0',
        b'{"text":["a",""]}\0',
        b'{"text":["",""]}\0',
    ]


TOKEN = {"logprob": None, "special": None}


@pytest.mark.parametrize(
    ("reason", "name"), [("stop", "eos_token"), ("length", "length"), ("abort", "stop_sequence")]
)
def test_whole_answers_of_the_tgi_style(reason: str, name: str) -> None:
    """Guards the answer with and without details, and where vLLM says the prompt's tokens."""
    choice = {"text": "lo", "finish_reason": reason, "token_ids": [7], "prompt_token_ids": [5, 6]}
    answer = {"choices": [choice], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}
    response = call(Inner((200, [answer])), {"inputs": "Hel"})
    assert response is not None
    assert response.json == {"generated_text": "lo"}
    parameters = {"decoder_input_details": True, "seed": 3}
    response = call(Inner((200, [answer])), {"inputs": "Hel", "parameters": parameters})
    assert response is not None
    token = TOKEN | {"text": None}
    assert response.json == {
        "generated_text": "lo",
        "details": {
            "prompt_tokens": 2,
            "finish_reason": name,
            "generated_tokens": 1,
            "prefill": [token | {"id": 5}, token | {"id": 6}],
            "seed": 3,
            "tokens": [token | {"id": 7}],
        },
    }


@pytest.mark.parametrize("details", [False, True])
def test_frames_of_the_tgi_style(details: bool) -> None:
    """Guards /generate_stream: the last frame has the whole text, and details if asked."""
    stream = events(
        delta(text="a", token_ids=[1]),
        delta(text="b", token_ids=[2, 3], reason="stop"),
        {"choices": [], "usage": {"prompt_tokens": 4}},
    )
    body = {"inputs": "x", "parameters": {"details": details}}
    response = call(Inner((200, stream)), body, "/generate_stream")
    assert response is not None
    first, last = (json.loads(chunk.removeprefix(b"data: ")) for chunk in response.chunks)
    assert all(chunk.endswith(b"\n\n") for chunk in response.chunks)
    token = TOKEN | {"id": [1], "text": "a"}
    assert first == {"token": token, "generated_text": None, "details": None}
    said = {"prompt_tokens": 4, "finish_reason": "eos_token", "generated_tokens": 3, "seed": None}
    assert last == {
        "token": TOKEN | {"id": [2, 3], "text": "b"},
        "generated_text": "ab",
        "details": said if details else None,
    }


def test_a_client_that_has_gone() -> None:
    """Guards against an answer, or an exception, for nobody."""
    assert call(Inner((200, [None])), {"prompt": "a"}) is None

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pytest.fail(str(message))

    scope = {"type": "http", "method": "POST", "path": "/generate", "headers": []}
    asyncio.run(MindIERoutes(Inner())(scope, receive, send))


def chat(content: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **fields}


def test_the_seeds_chat() -> None:
    """Guards media as strings, and do_sample, which neither vLLM nor MindIE reads."""
    text = {"type": "text", "text": "什么?"}
    given = [{"type": "image_url", "image_url": "/data/a.png"}, text]
    inner = Inner((200, [b"as it is"]))
    response = call(inner, chat(given, temperature=1.0, do_sample=False), "/v1/chat/completions")
    assert response is not None
    assert response.chunks == [b"as it is"]
    picture = {"type": "image_url", "image_url": {"url": "file:///data/a.png"}}
    scope, body = inner.asked[0]
    assert body == chat([picture, text], temperature=0, do_sample=False)
    assert (
        dict(scope["headers"])[b"content-type"] == b"application/json"
    )  # which curl -d does not say


def test_a_chat_whose_media_are_none() -> None:
    """Guards MindIE's error for a string of no use."""
    content = [{"type": "video_url", "video_url": "clip"}]
    response = call(Inner(), chat(content), "/v1/chat/completions")
    assert response is not None
    assert response.status == 422
    assert response.json["error"] == "Input type video_url does not match the mm type."


@pytest.mark.parametrize(
    "data",
    [
        b'{"messages":   []}',
        b'not json, "image_url": "a"',
        b'["do_sample", {"do_sample": false}]',
        b'{"messages": 1, "do_sample":true}',
    ],
)
def test_other_chats_stay_as_they_are(data: bytes) -> None:
    """Guards vLLM's own requests, and its own refusals."""
    assert chat_body(data) == data


@pytest.mark.parametrize("messages", [None, 1, [1], [{}], [{"content": 1}], [{"content": [1]}]])
def test_chats_of_odd_forms(messages: Any) -> None:
    """Guards against an exception before vLLM has refused."""
    body = {"messages": messages, "do_sample": False}
    assert json.loads(chat_body(json.dumps(body).encode())) == body | {"temperature": 0}


@pytest.mark.parametrize(
    ("path", "method"),
    [("/health", "GET"), ("/v1/models", "GET"), ("/generate", "GET"), ("/v1/completions", "POST")],
)
def test_all_else_passes(path: str, method: str) -> None:
    """Guards vLLM's own routes."""
    inner = Inner((200, [b"as it is"]))
    response = call(inner, {}, path, method)
    assert response is not None
    assert response.chunks == [b"as it is"]
    assert inner.asked[0][0]["path"] == f"/base{path}"


def test_the_limit_is_set_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards maxIterTimes, and that a wrong one is refused when the server starts."""
    monkeypatch.setenv(MAX_ITER_TIMES_VARIABLE, "7")
    inner = Inner((200, [{"choices": []}]))
    call(inner, {"prompt": "a"})
    assert inner.asked[0][1]["max_tokens"] == 7
    for wrong in ("0", "-1", "many", "1.5"):
        monkeypatch.setenv(MAX_ITER_TIMES_VARIABLE, wrong)
        with pytest.raises(ValueError, match="expected the most tokens of an answer"):
            MindIERoutes(inner)
