# SPDX-License-Identifier: Apache-2.0
"""Refusals of vLLM's own routes: 400 in one sentence, without a traceback; and all that can be
understood is answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.end_to_end.bad_media import QUESTION
from tests.end_to_end.servers import PICTURES, THINKING_OFF, VIDEOS, data_uri, video_uri

NUMBER = "6021"
USER = {"role": "user", "content": "hi"}
CHAT, BATCH, RESPONSES = "/v1/chat/completions", "/v1/chat/completions/batch", "/v1/responses"
MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"


def picture() -> str:
    return data_uri((PICTURES / "printed.png").read_bytes())


def body_of(path: str, messages: Any, **fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "tiny", "temperature": 0, **fields}
    if path == RESPONSES:
        return {**body, "input": messages}
    if path in (MESSAGES, COUNT):
        body |= {"max_tokens": 64} if path == MESSAGES else {}
    return {**body, "messages": [messages] if path == BATCH else messages}


def ask(server: httpx.Client, path: str, messages: Any, **fields: Any) -> httpx.Response:
    return server.post(path, json=body_of(path, messages, **fields))


def text_of(path: str, response: httpx.Response) -> str:
    """The text of an answer of any route."""
    assert response.status_code == 200, response.text
    answer = response.json()
    if path == RESPONSES:
        return answer["output"][-1]["content"][0]["text"]
    if path == MESSAGES:
        return answer["content"][-1]["text"]
    return answer["choices"][0]["message"]["content"]


def sentence_of(path: str, response: httpx.Response) -> str:
    """The sentence of a refusal, in the form that the route's clients read."""
    assert response.status_code == 400, response.text
    answer = response.json()
    if path in (MESSAGES, COUNT):
        assert (answer["type"], answer["error"]["type"]) == ("error", "invalid_request_error")
    else:
        assert answer["error"]["code"] == 400
    sentence = answer["error"]["message"]
    for noise in ("\n", "site-packages", "pydantic", " at 0x"):
        assert noise not in sentence
    assert len(sentence) < 400
    return sentence


FORMS = {
    "plain": {"type": "image_url", "image_url": picture()},
    "type image": {"type": "image", "image": picture()},
    "input_image": {"type": "input_image", "image_url": picture()},
    "source": {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": picture().split(",")[1]},
    },
}


@pytest.mark.parametrize("path", [CHAT, BATCH, RESPONSES, MESSAGES])
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_pictures(server: httpx.Client, path: str, form: str) -> None:
    """Guards every form that clients write, on every route."""
    messages = [{"role": "user", "content": [FORMS[form], {"type": "text", "text": QUESTION}]}]
    assert f"<answer>{NUMBER}</answer>" in text_of(path, ask(server, path, messages))


@pytest.mark.parametrize("part", [{"type": "video"}, {"type": "video_url"}])
def test_forms_of_videos(server: httpx.Client, part: dict[str, Any]) -> None:
    """Guards videos, whole and where there are none."""
    expected = json.loads((VIDEOS / "answers.json").read_text())["numbers.mp4"]["first"]
    video = {**part, part["type"]: video_uri((VIDEOS / "numbers.mp4").read_bytes())}
    question = {"type": "text", "text": "Which number comes first?"}
    messages = [{"role": "user", "content": [video, question]}]
    assert f"<answer>{expected}</answer>" in text_of(CHAT, ask(server, CHAT, messages))
    for path in (RESPONSES, MESSAGES, COUNT):
        assert "is a video, and" in sentence_of(path, ask(server, path, messages))


BAD = {
    "nothing": ([], "is empty; expected at least one message"),
    "no role": ([{"content": "hi"}], "[0] has no role; expected"),
    "no content": ([{"role": "user", "content": None}], "content is None; expected"),
    "no picture": ([{"role": "user", "content": [{"type": "image"}]}], "brings no image; expe"),
    "sound": (
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": "x"}]}],
        "is of",
    ),
    "a bad picture": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": data_uri(b"text")}]}],
        "not a picture",
    ),
    "too long": ([{"role": "user", "content": "7" * 3000}], "maximum context length"),
}


@pytest.mark.parametrize("path", [CHAT, BATCH, RESPONSES, MESSAGES, COUNT, "/tokenize"])
@pytest.mark.parametrize("name", BAD)
def test_bad_messages(server: httpx.Client, log: Path, path: str, name: str) -> None:
    """Guards against 500, tracebacks, and the server's own files in an answer."""
    messages, sentence = BAD[name]
    if (path, name) == ("/tokenize", "too long"):
        return  # it counts
    before = log.stat().st_size
    assert sentence in sentence_of(path, ask(server, path, messages))
    with log.open() as written:
        written.seek(before)
        assert "Traceback" not in written.read()


FIELDS = {
    "temperature": ("abc", "temperature is 'abc': input should be a valid number"),
    "max_tokens": (1.5, "max_tokens is 1.5: input should be a valid integer"),
    "structured_outputs": ("x", "structured_outputs is 'x'; expected an object"),
    "top_logprobs": ("1", "top_logprobs is '1'; expected a whole number"),
    "tool_choice": ("required", "When using `tool_choice`, `tools` must be set"),
    "top_p": (2, "top_p must be in (0, 1]"),
    "thinking": ("off", "thinking is 'off'; expected"),
    "chat_template_kwargs": ({"enable_thinking": "no"}, "enable_thinking is 'no'; expected true"),
    "stop": (3, "stop is 3: input should be a valid string or input should be a valid list"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_bad_fields(server: httpx.Client, log: Path, name: str) -> None:
    """Guards fields of a chat: which, what was found, and what was expected."""
    value, sentence = FIELDS[name]
    before = log.stat().st_size
    assert sentence in sentence_of(CHAT, ask(server, CHAT, [USER], **{name: value}))
    with log.open() as written:
        written.seek(before)
        assert "Traceback" not in written.read()


def test_a_missing_field(server: httpx.Client) -> None:
    """Guards bodies without messages, and bodies that are no JSON."""
    response = server.post(CHAT, json={"model": "tiny"})
    assert sentence_of(CHAT, response) == "messages is missing."
    headers = {"Content-Type": "application/json"}
    broken = server.post(CHAT, content=b'{"messages": [', headers=headers)
    assert "The body is no JSON" in sentence_of(CHAT, broken)
    listed = server.post(CHAT, content=b"[]", headers=headers)
    assert "expected a JSON object" in sentence_of(CHAT, listed)


def test_connections_stay_open(server: httpx.Client) -> None:
    """Guards clients that keep connections: vLLM closed them after its own ValueErrors."""
    with httpx.Client(base_url=server.base_url, timeout=60) as keeping:
        for fields in ({"top_p": 2}, {"temperature": -1}, {"max_tokens": 9999}):
            refused = keeping.post(CHAT, json=body_of(CHAT, [USER], **fields))
            assert refused.status_code == 400
            good = keeping.post(CHAT, json=body_of(CHAT, [USER], max_tokens=1))
            assert good.status_code == 200


@pytest.mark.parametrize("fields", THINKING_OFF)
def test_thinking_switched_off(server: httpx.Client, fields: dict[str, Any]) -> None:
    """Guards servers without a reasoning parser: no thinking, and no tag that nothing opened."""
    messages = [{"role": "user", "content": [FORMS["plain"], {"type": "text", "text": QUESTION}]}]
    texts = {
        text_of(path, ask(server, path, messages, **fields))
        for path in (CHAT, BATCH, RESPONSES, MESSAGES)
    }
    lines = ask(server, CHAT, messages, stream=True, **fields).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    texts.add("".join(event["choices"][0]["delta"].get("content") or "" for event in events))
    (text,) = texts
    assert text.isdecimal()
    closed = ask(server, "/tokenize", [USER], **fields).json()["tokens"]
    tags = server.post("/tokenize", json={"prompt": "<think></think><answer>"}).json()["tokens"]
    assert closed[-3:] == tags[-3:]
    assert closed[:-3] == ask(server, "/tokenize", [USER]).json()["tokens"]


def test_beams_end(server: httpx.Client) -> None:
    """Guards beam search: it used to write on, into questions that it asks itself."""
    question = {"type": "text", "text": QUESTION}
    messages = [{"role": "user", "content": [FORMS["plain"], question]}]
    fields = {"use_beam_search": True, "n": 2, "max_tokens": 64}
    choices = ask(server, CHAT, messages, **fields).json()["choices"]
    assert choices[0]["message"]["content"] == (
        f"<think>I see the digits 6 0 2 1.</think><answer>{NUMBER}</answer>"
    )
    for choice in choices:
        assert choice["finish_reason"] == "stop"
        assert "<|" not in choice["message"]["content"]
        assert choice["message"]["content"].endswith("</answer>")
    hot = ask(server, CHAT, messages, **fields | {"temperature": 5}).json()["choices"]
    assert [choice["message"] for choice in hot] == [choice["message"] for choice in choices]
