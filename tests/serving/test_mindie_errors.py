# SPDX-License-Identifier: Apache-2.0
"""MindIE's routes as middleware: MindIE's errors for vLLM's."""

from __future__ import annotations

from typing import Any

import pytest

from tests.serving.mindie_app import Inner, Response, call, events

TOO_LONG = (
    "This model's maximum context length is 1024 tokens. However, you requested 512 output tokens "
    "and your prompt contains {} input tokens, for a total of at least 1025 tokens."
)

CHARACTERS = (
    "This model's maximum context length is 1024 tokens. However, you requested 512 output tokens "
    "and your prompt contains {} characters (more than {} characters, which is the upper bound for "
    "{} input tokens). Please reduce the length of the input prompt"
)


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
    chunks: list[Any] = [b'data: {"choices": [{"index": 0, "text": "a"}]}\n\n']
    chunks.append(failure if isinstance(failure, Exception) else events(failure)[0])
    response = call(Inner((200, chunks)), {"prompt": "a", "stream": True})
    assert response == Response(200, "text/event-stream", [b'{"text":["a"]}\0'])


NO_ROOM = [
    TOO_LONG.format("at least 513"),
    "max_tokens=512 cannot be greater than max_model_len=max_total_tokens=1024. Please request",
    CHARACTERS.format(9_000, 5000, 512),  # 1024 tokens may have 10,000
    CHARACTERS.format(1, 0, 0),
]


def answer_of(prompt_tokens: int) -> tuple[int, list[Any]]:
    return 200, [{"choices": [], "usage": {"prompt_tokens": prompt_tokens}}]


@pytest.mark.parametrize("refusal", NO_ROOM)
@pytest.mark.parametrize(("prompt", "room"), [(1000, 24), (1023, 1)])
def test_a_completion_that_fits_but_for_its_limit(refusal: str, prompt: int, room: int) -> None:
    """Guards MindIE's cut at the end of the context, by a count that vLLM has checked."""
    inner = Inner(vllm_error(400, refusal), answer_of(prompt), answer_of(prompt))
    response = call(inner, {"prompt": "a", "stop": "b"})
    assert response is not None
    assert response.status == 200
    assert {scope["path"] for scope, _ in inner.asked} == {"/base/v1/completions"}
    assert [body["max_tokens"] for _, body in inner.asked] == [512, 1, room]
    assert {body["stop"] for _, body in inner.asked} == {"b"}


def test_a_stream_that_fits_but_for_its_limit() -> None:
    """Guards the count of a stream, which is asked for as a whole answer."""
    stream = events({"choices": [{"index": 0, "text": "a", "token_ids": [1]}]})
    inner = Inner(vllm_error(400, NO_ROOM[0]), answer_of(1000), (200, stream))
    response = call(inner, {"inputs": "a"}, "/generate_stream")
    assert response is not None
    assert response.status == 200
    assert [body["stream"] for _, body in inner.asked] == [True, False, True]
    assert [body["stream_options"] for _, body in inner.asked][1] is None


@pytest.mark.parametrize("refusal", NO_ROOM)
def test_a_chat_that_fits_but_for_its_limit(refusal: str) -> None:
    """Guards the same where vLLM does it itself, once max_tokens is left out."""
    inner = Inner(vllm_error(400, refusal), (200, [{"choices": []}]))
    response = call(inner, {"prompt": [{"type": "text", "text": "a"}]})
    assert response is not None
    assert response.status == 200
    assert [body["max_tokens"] for _, body in inner.asked] == [512, None]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["a", [{"type": "text", "text": "a"}]])
def test_a_text_of_too_many_characters(prompt: Any, stream: bool) -> None:
    """Guards against cutting a text into tokens that was refused for its length alone."""
    inner = Inner(vllm_error(400, CHARACTERS.format(10_000_000, 18_432, 512)))
    response = call(inner, {"prompt": prompt, "stream": stream})
    assert response is not None
    assert response.status == 424
    assert response.json["error"].endswith("than 1024,the input ids length is at least 277778")
    assert len(inner.asked) == 1


def test_a_client_that_leaves_before_the_second_answer() -> None:
    """Guards against a traceback about vLLM's empty answer to nobody."""
    inner = Inner(vllm_error(400, TOO_LONG.format("at least 513")), (200, [None]))
    assert call(inner, {"prompt": "a"}) is None


OTHERS = (
    "Input length (1025) exceeds model's maximum context length (1024).",
    "The decoder prompt (length 1025) is longer than the maximum model length of 1024. Make sure",
    "The decoder prompt (length 1025) plus the number of requested output tokens (at least 1) is "
    "longer than the maximum model length of 1024. Make sure",
)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("message", [TOO_LONG.format("at least 1025"), *OTHERS])
def test_a_prompt_that_is_too_long(message: str, stream: bool) -> None:
    """Guards MindIE's 424 with both numbers, before and after pictures are expanded."""
    tries = [TOO_LONG.format("at least 513")] * (message not in OTHERS) + [message]
    inner = Inner(*(vllm_error(400, text) for text in tries))
    prompt = [{"type": "text", "text": "a"}]
    response = call(inner, {"prompt": prompt, "stream": stream})
    assert response is not None
    assert response.status == 424
    found = "1025" if message in OTHERS else "at least 1025"
    assert response.json == {
        "error": "Failed to enqueue inferRequest. This model's maximum input ids length cannot be "
        f"greater than 1024,the input ids length is {found}",
        "error_type": "Generation Error",
    }
    assert inner.answers == []


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
