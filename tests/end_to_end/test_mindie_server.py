# SPDX-License-Identifier: Apache-2.0
"""`vllm serve` for people who come from MindIE: /generate, and the reasoning parser."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.end_to_end.aisbench import test_aisbenchs_requests  # noqa: F401  run on this server
from tests.end_to_end.fuzzing import ANYTHING, BOUNDED, PARTS
from tests.end_to_end.mindie import (
    ASSETS,
    CLIP,
    FIRST,
    NUMBER,
    PICTURE,
    QUESTION,
    WRITTEN,
    chat,
    error,
    generate,
    parts,
)
from tests.end_to_end.mindie_thinking import (  # noqa: F401  run here, on this server
    test_calls_of_tools,
    test_no_thinking,
    test_reasoning,
    test_reasoning_left_out,
    test_reasoning_with_a_budget,
    test_reasoning_with_a_grammar,
    test_thinking_switched_off,
)
from tests.end_to_end.servers import (
    MAX_MODEL_LEN,
    STOP_SECONDS,
    Server,
    data_uri,
    serving,
    video_uri,
)
from tests.lane import ALL_LANES, BACKEND
from vllm_glm41v_npu.backends import ATLAS_310P
from vllm_glm41v_npu.serving.command import GUARD, ROUTES

pytestmark = [
    *ALL_LANES,
    pytest.mark.skipif(BACKEND is ATLAS_310P, reason="test_server.py asks this chip's server"),
]


@pytest.fixture(scope="module")
def process(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]
) -> Iterator[Server]:
    """A server as `glm41v serve` starts it."""
    options = ["--served-model-name", "glm4v", "--reasoning-parser", "glm41v"]
    options += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    options += ["--middleware", ROUTES, "--middleware", GUARD, "--shutdown-timeout", "30"]
    options += ["--limit-mm-per-prompt", '{"image": 20, "video": 1}', "--api-key", "key"]
    options += ["--allowed-local-media-path", str(ASSETS)]
    log = tmp_path_factory.mktemp("mindie") / "log"
    with serving(checkpoint("tiny"), log, *options) as server:
        yield server


@pytest.fixture(scope="module")
def server(process: Server) -> Iterator[httpx.Client]:
    with process.client() as client:
        client.headers["Authorization"] = "Bearer key"
        yield client


@pytest.mark.parametrize("form", ["path", "file", "base64", "bare"])
def test_a_picture(server: httpx.Client, form: str) -> None:
    """Guards the seed's request, thinking and tags included, in each form of a picture."""
    data = data_uri(PICTURE.read_bytes())
    forms = {"path": str(PICTURE), "file": {"url": PICTURE.as_uri()}, "base64": data}
    forms["bare"] = data.partition(",")[2]
    response = generate(server, parts(QUESTION, forms[form]), model="glm4v")
    assert response.json() == {"text": [f"{QUESTION} {WRITTEN}"]}


@pytest.mark.parametrize("form", ["path", "base64"])
def test_a_video(server: httpx.Client, form: str) -> None:
    """Guards the seed's second request."""
    answers = json.loads((CLIP.parent / "answers.json").read_text())[CLIP.name]
    url = str(CLIP) if form == "path" else video_uri(CLIP.read_bytes())
    # The tiny checkpoint was trained with the text last.
    response = generate(server, parts(FIRST, url)[::-1], model="glm4v")
    assert f"<answer>{answers['first']}</answer>" in response.json()["text"][0]


def test_frames_of_a_stream(server: httpx.Client) -> None:
    """Guards frames that end in a zero byte, and join to the whole answer."""
    body = {"prompt": parts(QUESTION, str(PICTURE)), "stream": True}
    with server.stream("POST", "/generate", json=body) as response:
        assert response.headers["content-type"] == "text/event-stream"
        *frames, end = b"".join(response.iter_raw()).split(b"\0")
    assert end == b""
    assert len(frames) > 5
    assert "".join(json.loads(frame)["text"][0] for frame in frames) == WRITTEN


def test_the_tgi_style(server: httpx.Client) -> None:
    """Guards both of its routes, and the token ids that its details have."""
    body: dict[str, Any] = {
        "inputs": parts(QUESTION, str(PICTURE)),
        "parameters": {"max_new_tokens": 60, "details": True, "decoder_input_details": True},
    }
    whole = server.post("/generate", json=body).json()
    details = whole["details"]
    assert whole["generated_text"] == WRITTEN
    assert details["generated_tokens"] == len(details["tokens"]) > 5
    assert details["prompt_tokens"] == len(details["prefill"]) > 5
    assert details["finish_reason"] == "eos_token"
    del body["parameters"]["decoder_input_details"]
    response = server.post("/generate_stream", json=body)
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line]
    assert "".join(event["token"]["text"] for event in events) == WRITTEN
    assert events[-1]["generated_text"] == WRITTEN
    expected = {key: value for key, value in details.items() if key not in ("prefill", "tokens")}
    assert events[-1]["details"] == expected


def test_a_string_is_not_a_chat(server: httpx.Client) -> None:
    """Guards a prompt that brings its own tags: the same answer as through the template."""
    text = f"[gMASK]<sop><|user|>\n{QUESTION}<|assistant|>\n"
    response = generate(server, text)
    through_template = generate(server, parts(QUESTION)).json()["text"][0]
    assert response.json()["text"][0].removeprefix(text) == through_template.removeprefix(QUESTION)


def test_several_answers(server: httpx.Client) -> None:
    """Guards n."""
    response = generate(server, parts(QUESTION, str(PICTURE)), n=2, temperature=0.01)
    assert response.json() == {"text": [f"{QUESTION} {WRITTEN}"] * 2}


def test_refusals(server: httpx.Client) -> None:
    """Guards MindIE's statuses for what MindIE refuses, and for what vLLM does."""
    assert error(generate(server, parts("", "QUJD")), 422)
    for path in ("/etc/none.png", "/etc/passwd", "file:///etc/passwd", "/etc/os-release.txt"):
        message = error(generate(server, parts("", path)), 422)
        assert "that this server may read" in message  # and not that it is bad base64
    assert "exist" in error(generate(server, "Hi", model="none"), 404)
    mixed = parts("", str(PICTURE), str(CLIP))
    assert error(generate(server, mixed), 422).startswith("Image and video cannot exist")
    assert error(generate(server, parts("", *[str(PICTURE)] * 21)), 422).endswith("more than 20")
    assert error(generate(server, "Hi", top_k=0), 422).startswith("Parameter top_k must be")


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_that_are_too_long(server: httpx.Client, stream: bool) -> None:
    """Guards MindIE's 424, and the cut of an answer where the context ends."""
    message = error(generate(server, "7" * MAX_MODEL_LEN * 2, stream=stream), 424)
    assert f"cannot be greater than {MAX_MODEL_LEN},the input ids length is" in message
    fits = generate(server, "7" * (MAX_MODEL_LEN - 5), ignore_eos=True, stream=stream)
    assert fits.status_code == 200, fits.text


def test_a_text_of_millions_of_characters(server: httpx.Client, process: Server) -> None:
    """Guards against cutting it into tokens: others are answered, and no memory is taken."""
    before = process.process.memory_info().rss
    started = time.monotonic()
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(generate, server, "a" * 30_000_000)
        with process.client() as other:
            while not answer.done():
                asked = time.monotonic()
                assert other.get("/health").status_code == 200
                assert time.monotonic() - asked < 5
    assert "the input ids length is at least" in error(answer.result(), 424)
    assert time.monotonic() - started < 20  # 100 s of a server that stands still, once
    assert process.process.memory_info().rss - before < 1 << 30


def test_the_seeds_chat(server: httpx.Client) -> None:
    """Guards a picture as a path, and do_sample false as greedy, on the OpenAI route."""
    content = [
        {"type": "image_url", "image_url": str(PICTURE)},
        {"type": "text", "text": QUESTION},
    ]
    fields = {"max_tokens": 128, "temperature": 1.0, "top_p": 0.5, "stream": False}
    fields |= {"repetition_penalty": 1.0, "top_k": 10, "do_sample": False}
    messages = [{"role": "user", "content": content}]
    assert chat(server, messages=messages, **fields).json()["choices"][0]["message"]["content"] == (
        NUMBER
    )


def test_other_routes(server: httpx.Client) -> None:
    """Guards what MindIE's clients ask before they generate, and the API key."""
    assert server.get("/health").status_code == 200
    assert server.get("/v1/models").json()["data"][0]["id"] == "glm4v"
    routes = ["/generate", "/v1/chat/completions", "/invocations", "/tokenize", "//v1/completions"]
    for path in routes:
        response = server.post(path, json={"prompt": "Hi"}, headers={"Authorization": "no"})
        assert response.status_code == 401
    assert server.get("/metrics", headers={"Authorization": ""}).status_code == 401
    assert server.get("/metrics").status_code == 200


def test_a_body_that_is_too_large(server: httpx.Client) -> None:
    """Guards an answer that the client gets to read, though it closes the connection behind it."""
    response = server.post("/generate", content=b"a" * (41 << 20))
    assert response.status_code == 413
    assert "40MB" in response.json()["message"]
    response = server.post("/v1/completions", content=b"[" * (1 << 20))
    assert response.status_code == 413
    assert "values" in response.json()["error"]["message"]


FIELDS = ["stop", "top_k", "top_p", "temperature", "seed", "n", "max_tokens", "stream", "model"]
FIELDS += ["stop_token_ids", "repetition_penalty", "ignore_eos", "parameters"]
BODY = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.lists(PARTS, max_size=3) | ANYTHING,
        "inputs": st.lists(PARTS, max_size=3) | ANYTHING,
        **{key: ANYTHING | st.integers(0, 2) for key in FIELDS},
    },
)


@pytest.fixture
def answers_afterwards(server: httpx.Client) -> Iterator[None]:
    """The engine is alive after all examples, and right."""
    yield
    assert chat(server).json()["choices"][0]["message"]["content"] == NUMBER


@pytest.mark.usefixtures("answers_afterwards")
@BOUNDED
@given(body=BODY, path=st.sampled_from(["/generate", "/generate_stream"]))
def test_any_body(server: httpx.Client, body: dict[str, Any], path: str) -> None:
    """Guards against a 500 for whatever a client sends."""
    response = server.post(path, content=json.dumps(body).encode())
    assert response.status_code in (200, 404, 422, 424), (response.status_code, response.text)


@pytest.mark.usefixtures("answers_afterwards")
@BOUNDED
@given(content=st.lists(PARTS, min_size=1, max_size=3), sampled=ANYTHING)
def test_any_media_of_a_chat(server: httpx.Client, content: Any, sampled: Any) -> None:
    """Guards the other forms of media that a chat takes beside these routes."""
    body = {"model": "glm4v", "max_tokens": 2, "do_sample": sampled}
    body["messages"] = [{"role": "user", "content": content}]
    response = server.post("/v1/chat/completions", content=json.dumps(body).encode())
    assert response.status_code in (200, 400, 422), (response.status_code, response.text)


def test_answers_of_a_server_that_ends(server: httpx.Client, process: Server) -> None:
    """Guards requests in flight at SIGTERM, also those whose pictures are still being read.

    The last test of this file: it ends the server.
    """
    body = {"prompt": parts(QUESTION, str(PICTURE)), "max_tokens": 128}
    long = {"prompt": "Hi", "max_tokens": 500, "ignore_eos": True}
    with ThreadPoolExecutor(16) as threads:
        waiting = [threads.submit(server.post, "/generate", json=long) for _ in range(8)]
        time.sleep(0.5)
        waiting += [threads.submit(server.post, "/generate", json=body) for _ in range(8)]
        time.sleep(0.05)
        process.process.terminate()
        answers = [future.result() for future in waiting]
    assert all(answer.status_code == 200 for answer in answers)
    assert all(answer.json() == {"text": [f"{QUESTION} {WRITTEN}"]} for answer in answers[8:])
    assert all(len(answer.json()["text"][0]) > 100 for answer in answers[:8])
    assert process.process.wait(STOP_SECONDS) == 0
