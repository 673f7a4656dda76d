# SPDX-License-Identifier: Apache-2.0
"""Bodies that MindIE's routes read: after the key, within limits, and away from other requests."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from tests.serving.asgi import BEARER, ask
from vllm_glm41v_npu.serving import bodies, guard
from vllm_glm41v_npu.serving.bodies import MAX_BODY_VARIABLE
from vllm_glm41v_npu.serving.mindie import chat, routes
from vllm_glm41v_npu.serving.mindie.routes import MindIERoutes

ROUTES = ("/generate", "/generate_stream", "/v1/chat/completions")
MIB = 1 << 20


class Inner:
    """Answers with the body it was given."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        self.asked.append(message["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'{"choices": []}'})


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of 2 MiB and 100 values."""
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setenv(MAX_BODY_VARIABLE, "2")
    monkeypatch.setattr(bodies, "MAX_VALUES", 100)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("headers", [[], [(b"authorization", b"Bearer wrong")]])
def test_nothing_is_read_without_a_key(path: str, headers: Any) -> None:
    """Guards memory and time of a server against those who may not ask: vLLM looks too late."""
    inner = Inner()
    answer = ask(MindIERoutes(inner), path, headers, [b'{"do_sample":false,', b"[" * MIB] * 3)
    assert (answer.status, answer.read, inner.asked) == (401, 0, [])
    assert answer.json["error"] == "Unauthorized"


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("path", ROUTES)
def test_bodies_that_are_too_large(path: str, announced: bool) -> None:
    """Guards a limit on every body that is read here, with a sentence in the route's own form."""
    inner = Inner()
    headers = [BEARER] + [(b"content-length", b"%d" % (3 * MIB))] * announced
    answer = ask(MindIERoutes(inner), path, headers, [b"a" * MIB] * 3)
    assert (answer.status, inner.asked) == (413, [])
    assert answer.read == 3 * MIB  # a client that is cut off would not read the answer
    if path in routes.ROUTES:
        message = "Request body too large. Maximum allowed size is 2MB."
        assert answer.json == {"message": message}
    else:
        assert "larger than 2 MiB" in answer.json["error"]


@pytest.mark.parametrize("kind", [b"application/json", b"multipart/form-data; boundary=x"])
@pytest.mark.parametrize("path", ROUTES)
def test_bodies_of_too_many_values(path: str, kind: bytes) -> None:
    """Guards against parsing what would stop all other requests, whatever it says it is."""
    inner = Inner()
    body = b'{"do_sample":false,"prompt":[' + b'{"type":"text"},' * 60
    answer = ask(MindIERoutes(inner), path, [BEARER, (b"content-type", kind)], [body, body])
    assert (answer.status, inner.asked) == (413, [])
    assert "more than 100 values" in answer.json["error"]


@pytest.mark.parametrize(
    ("kind", "counts"),
    [(b"application/json", [True, False]), (b"multipart/form-data; boundary=x", [False, True])],
)
def test_values_are_counted_once(
    kind: bytes, counts: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the event loop against counting a body behind the guard again, and not at all."""
    counted = []

    class Noted(bodies.BodyCount):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            counted.append(self.is_json)

    monkeypatch.setattr(guard, "BodyCount", Noted)
    monkeypatch.setattr(bodies, "BodyCount", Noted)
    app = guard.Guard(MindIERoutes(Inner()))
    headers = [BEARER, (b"content-type", kind)]
    assert ask(app, "/generate", headers, [b'{"prompt": "a"}']).status == 200
    assert counted == counts


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
def test_parsing_is_apart(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the event loop: JSON is read and written in another thread."""
    threads = set()

    def noted(work: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            threads.add(threading.current_thread())
            return work(*arguments, **options)

        return call

    monkeypatch.setattr(routes, "translate", noted(routes.translate))
    monkeypatch.setattr(routes, "chat_body", noted(routes.chat_body))
    monkeypatch.setattr(routes.json, "dumps", noted(json.dumps))
    body = {"prompt": "a", "inputs": "a", "messages": [], "do_sample": False}
    assert ask(MindIERoutes(Inner()), path, [BEARER], [json.dumps(body).encode()]).status == 200
    threads.discard(threading.main_thread())  # the small answer, and this test's own call
    assert len(threads) == 1


PLAIN = [
    b'{"messages":[{"content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,"}}]}]}',
    b'{"messages":[{"content":"is \\"do_sample\\": false, \\"image_url\\": \\"a\\" right?"}]}',
    b'{"do_sample" : true, "do_sample": null, "image_url": ["a"], "video_url":1}',
    b"[" * 50,
    b"",
]


@pytest.mark.parametrize("body", PLAIN)
def test_a_chat_of_vllms_own_form_is_not_parsed(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against parsing every body twice."""
    monkeypatch.setattr(chat.json, "loads", lambda _: pytest.fail("parsed"))
    assert chat.chat_body(body) is body


@pytest.mark.parametrize(
    "body",
    [
        b'{"image_url": {"url": ""}, "do_sample":\n false}',
        b'{"image_url": {"url": ""}, "video_url"\t:\r\n"clip.mp4"}',
    ],
)
def test_mindies_forms_are_found(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the other way: white space, and a form of MindIE's behind one of vLLM's."""
    parsed: list[bytes] = []

    def parse(data: bytes) -> dict[str, Any]:
        parsed.append(data)
        return {}

    monkeypatch.setattr(chat.json, "loads", parse)
    chat.chat_body(body)
    assert parsed == [body]


@pytest.mark.parametrize("path", ["\\ud800.png", "/a\\udfff/b.jpg"])
def test_a_path_that_no_file_can_have(path: str) -> None:
    """Guards half a character in a path, which was a 500."""
    part = b'{"type":"image_url","image_url":"%s"}' % path.encode()
    body = b'{"messages":[{"role":"user","content":[%s]}]}' % part
    answer = ask(MindIERoutes(Inner()), "/v1/chat/completions", [BEARER], [body])
    assert answer.status == 422
    assert answer.json["error"] == "Input of image_url is a path that no file can have."
