# SPDX-License-Identifier: Apache-2.0
"""MindIE's routes as middleware: answers, frames and errors, over an application that is not vLLM.

tests/end_to_end/test_mindie_server.py has the real one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest

from vllm_glm41v_npu.serving.mindie import MAX_ITER_TIMES_VARIABLE, MindIERoutes

TOO_LONG = (
    "This model's maximum context length is 1024 tokens. However, you requested 512 output tokens "
    "and your prompt contains {} input tokens, for a total of at least 1025 tokens."
)


class Response(NamedTuple):
    status: int
    content_type: str
    chunks: list[bytes]

    @property
    def json(self) -> Any:
        return json.loads(b"".join(self.chunks))


class Inner:
    """Answers with what it is given, in turn, and remembers what it was asked."""

    def __init__(self, *answers: tuple[int, Iterable[Any]] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[dict[str, Any], Any]] = []
        self.saw_disconnect = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        first = await receive()
        body = first["body"] + ((await receive())["body"] if first["more_body"] else b"")
        self.asked.append((scope, json.loads(body)))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, chunks = answer
        await send({"type": "http.response.start", "status": status, "headers": []})
        for chunk in chunks:
            if isinstance(chunk, Exception):
                raise chunk
            data = chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode()
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        self.saw_disconnect = (await receive())["type"] == "http.disconnect"


def call(inner: Inner, body: Any, path: str = "/generate", method: str = "POST") -> Response | None:
    """The response, or None where there was none."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    incoming = [{"type": "http.disconnect"}]
    half = len(data) // 2
    incoming.append({"type": "http.request", "body": data[half:], "more_body": False})
    incoming.append({"type": "http.request", "body": data[:half], "more_body": True})
    sent: list[Any] = []

    async def receive() -> Any:
        return incoming.pop() if len(incoming) > 1 else incoming[0]

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"Authorization", b"Bearer key"), (b"content-length", b"%d" % len(data))]
    scope = {"type": "http", "method": method, "path": f"/root{path}", "root_path": "/root"}
    asyncio.run(MindIERoutes(inner)({**scope, "headers": headers}, receive, send))
    if not sent:
        return None
    assert not sent[-1].get("more_body")
    chunks = [message["body"] for message in sent[1:] if message["body"]]
    kind = dict(sent[0]["headers"]).get(b"content-type", b"").decode()
    return Response(sent[0]["status"], kind, chunks)


def events(*contents: Any) -> list[bytes]:
    """A stream of vLLM's, cut at places of no meaning."""
    data = b"".join(b"data: %s\n\n" % json.dumps(content).encode() for content in contents)
    data += b"data: [DONE]\n\n"
    return [data[start : start + 37] for start in range(0, len(data), 37)]


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
    assert scope["path"] == "/root/v1/completions"
    assert scope["raw_path"] == b"/root/v1/completions"
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


def vllm_error(status: int, message: str) -> tuple[int, list[Any]]:
    return status, [{"error": {"message": message, "code": status}}]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("answer", "status", "message", "kind"),
    [
        (vllm_error(400, "no picture"), 422, "no picture", "Input Validation Error"),
        (vllm_error(404, "no model"), 404, "no model", "NotFoundError"),
        (vllm_error(500, "engine"), 500, "engine", "Incomplete Generation"),
        (vllm_error(501, "no chat"), 500, "no chat", "Incomplete Generation"),
        (vllm_error(503, "busy"), 503, "busy", "Service Unavailable"),
        ((401, [{"error": "Unauthorized"}]), 401, "Unauthorized", "Unauthorized"),
        ((502, [b"gateway"]), 500, "gateway", "Incomplete Generation"),
        (ValueError("bad"), 422, "bad", "Input Validation Error"),
        (RuntimeError("died"), 500, "died", "Incomplete Generation"),
    ],
)
def test_errors(answer: Any, status: int, message: str, kind: str, stream: bool) -> None:
    """Guards MindIE's status and body for whatever vLLM refuses or raises."""
    response = call(Inner(answer), {"prompt": "a", "stream": stream})
    assert response is not None
    assert response.status == status
    assert response.json == {"error": message, "error_type": kind}


def test_a_stream_that_is_refused_at_once() -> None:
    """Guards the status where vLLM has answered 200 and its first event is an error."""
    stream = events({"error": {"message": "no room", "code": 400}})
    response = call(Inner((200, stream)), {"prompt": "a", "stream": True})
    assert response is not None
    assert response.status == 422
    assert response.json == {"error": "no room", "error_type": "Input Validation Error"}


@pytest.mark.parametrize("failure", [{"error": {"message": "m", "code": 500}}, RuntimeError("m")])
def test_a_stream_that_fails_ends(failure: Any) -> None:
    """Guards MindIE's way: no error after the first frame, and no hang."""
    chunks = [b'data: {"choices": [{"index": 0, "text": "a"}]}\n\n']
    chunks.append(failure if isinstance(failure, Exception) else events(failure)[0])
    response = call(Inner((200, chunks)), {"prompt": "a", "stream": True})
    assert response == Response(200, "text/event-stream", [b'{"text":["a"]}\0'])


def test_an_answer_that_fits_but_for_its_limit() -> None:
    """Guards MindIE's cut at the end of the context, where vLLM refuses max_tokens."""
    inner = Inner(vllm_error(400, TOO_LONG.format("at least 513")), (200, [{"choices": []}]))
    response = call(inner, {"prompt": "a"})
    assert response is not None
    assert response.status == 200
    assert [body["max_tokens"] for _, body in inner.asked] == [512, None]


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long(stream: bool) -> None:
    """Guards MindIE's 424 with both numbers."""
    refusals = [vllm_error(400, TOO_LONG.format(n)) for n in ("at least 513", "at least 1025")]
    response = call(Inner(*refusals), {"prompt": "a", "stream": stream})
    assert response is not None
    assert response.status == 424
    assert response.json == {
        "error": "Failed to enqueue inferRequest. This model's maximum input ids length cannot be "
        "greater than 1024,the input ids length is 1025",
        "error_type": "Generation Error",
    }


def test_a_refusal_does_not_reach_vllm() -> None:
    """Guards MindIE's error for a field of a wrong type, through the middleware."""
    inner = Inner()
    response = call(inner, {"prompt": "a", "top_k": "b"})
    assert response is not None
    assert response.status == 422
    assert response.json == {
        "error": "top_k must be integer type.",
        "error_type": "Input Validation Error",
    }
    assert inner.asked == []


def test_a_body_that_is_too_large() -> None:
    """Guards MindIE's 40 MB, before anything is parsed."""
    response = call(Inner(), b'{"prompt": "' + b"a" * (40 << 20) + b'"}')
    assert response is not None
    assert response.status == 413
    assert response.json == {
        "message": "Request body too large. Maximum allowed size is 40MB.",
    }


def test_a_client_that_has_gone() -> None:
    """Guards against an answer, or an exception, for nobody."""
    assert call(Inner((200, [None])), {"prompt": "a"}) is None

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "POST", "path": "/generate", "headers": []}
    asyncio.run(MindIERoutes(Inner())(scope, receive, pytest.fail))


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
    assert inner.asked[0][0]["path"] == f"/root{path}"


def test_the_limit_is_set_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards maxIterTimes, and that a wrong one is refused when the server starts."""
    monkeypatch.setenv(MAX_ITER_TIMES_VARIABLE, "7")
    inner = Inner((200, [{"choices": []}]))
    call(inner, {"prompt": "a"})
    assert inner.asked[0][1]["max_tokens"] == 7
    for wrong in ("0", "-1", "many", ""):
        monkeypatch.setenv(MAX_ITER_TIMES_VARIABLE, wrong)
        with pytest.raises(ValueError, match="expected the most tokens of an answer"):
            MindIERoutes(inner)
