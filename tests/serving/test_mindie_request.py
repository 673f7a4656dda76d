# SPDX-License-Identifier: Apache-2.0
"""MindIE's requests: what vLLM is asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vllm_glm41v_npu.serving.mindie.request import Translation, translate

PICTURE = {"type": "image_url", "image_url": "https://host/a.jpg"}
VIDEO = {"type": "video_url", "video_url": "https://host/a.mp4"}
TEXT = {"type": "text", "text": "What?"}
GREEDY = {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0}
SAMPLED = GREEDY | {"temperature": 1.0}


def asked(body: Any, **options: Any) -> Translation:
    return translate(json.dumps(body).encode(), **options)


def vllm(**body: Any) -> Translation:
    return asked({"prompt": "Hi", **body})


def tgi(stream: bool = False, **parameters: Any) -> Translation:
    return asked({"inputs": "Hi", "parameters": parameters}, tgi_stream=stream)


def content(*parts: Any) -> list[dict[str, Any]]:
    body = asked({"prompt": parts}).body
    (message,) = body["messages"]
    assert message["role"] == "user"
    return message["content"]


def test_the_seeds_request() -> None:
    """Guards a request from MindIE's README, field by field."""
    body = {"prompt": [TEXT, {"type": "image_url", "image_url": "/data/a.png"}]}
    assert asked(body | {"max_tokens": 128, "model": "glm4v"}) == Translation(
        "/v1/chat/completions",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        TEXT,
                        {"type": "image_url", "image_url": {"url": "file:///data/a.png"}},
                    ],
                }
            ],
            "chat_template_kwargs": {"keep_tags": "all"},
            "model": "glm4v",
            **GREEDY,
            "n": 1,
            "max_tokens": 128,
            "stream": False,
        },
        "vllm",
        "What?",
    )


def test_a_string_goes_without_the_chat_template() -> None:
    """Guards completions, and every field that has a name of vLLM's."""
    fields = {
        "ignore_eos": True,
        "stop": ["a", "b"],
        "stop_token_ids": [1],
        "include_stop_str_in_output": True,
        "temperature": 0.5,
        "top_k": 5,
        "top_p": 1,
        "seed": 0,
        "repetition_penalty": 1.5,
        "frequency_penalty": -2,
        "presence_penalty": 2.0,
        "skip_special_tokens": False,
        "n": 2,
        "max_tokens": 3,
        "stream": True,
    }
    found = vllm(**fields, do_sample=True, other=None)
    assert (found.path, found.text) == ("/v1/completions", "Hi")
    assert found.body == {"prompt": "Hi"} | fields


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, GREEDY),
        ({"temperature": 0, "top_k": 3}, GREEDY | {"temperature": 0, "top_k": 3}),
        ({"top_k": 3}, SAMPLED | {"top_k": 3}),
        ({"top_p": 0.5}, SAMPLED | {"top_p": 0.5}),
        ({"top_p": 0.5, "do_sample": False}, GREEDY | {"top_p": 0.5}),
        ({"temperature": 1.0, "do_sample": False}, GREEDY),
        ({"seed": 3}, GREEDY),
        ({"temperature": None, "top_k": -1}, SAMPLED),
    ],
)
def test_when_mindie_samples(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    """Guards against vLLM's defaults, which come from generation_config.json."""
    body = vllm(**fields).body
    assert {key: body[key] for key in expected} == expected


def test_tgi_style() -> None:
    """Guards the names of the TGI style, do_sample, and its default of 20 tokens."""
    found = tgi(
        do_sample=True,
        seed=1,
        adapter_id="lora",
        truncate=9,
        stop="x",
        watermark=True,
        details=True,
    )
    expected = {
        "prompt": "Hi",
        "seed": 1,
        "model": "lora",
        "truncate_prompt_tokens": 9,
        "stop": "x",
        **SAMPLED,
        "max_tokens": 20,
        "stream": False,
        "return_token_ids": True,
    }
    assert found == Translation("/v1/completions", expected, "tgi", "Hi", details=True)
    sampled = tgi(temperature=0.5).body, tgi(do_sample=False, temperature=0.5).body
    assert [body["temperature"] for body in sampled] == [0.5, 0.0]
    assert tgi(stream=True).body["stream_options"] == {"include_usage": True}
    assert tgi(decoder_input_details=True)[-2:] == (True, True)
    chat = asked({"inputs": [TEXT]})
    assert (chat.path, chat.style) == ("/v1/chat/completions", "tgi")


def test_prompt_comes_before_inputs() -> None:
    """Guards which style a body with both is, and that null is as if left out."""
    assert asked({"prompt": "a", "inputs": "b"}).style == "vllm"
    assert asked({"prompt": None, "inputs": "b"}).style == "tgi"


def test_the_most_tokens_of_an_answer() -> None:
    """Guards maxIterTimes, both as the default and as the limit."""
    assert vllm().body["max_tokens"] == 512
    assert vllm(max_tokens=9999).body["max_tokens"] == 512
    assert asked({"prompt": "a"}, max_iter_times=9).body["max_tokens"] == 9
    assert asked({"inputs": "a"}, max_iter_times=9).body["max_tokens"] == 9


def test_stop_token_ids_beyond_int32_are_dropped() -> None:
    """Guards against a refusal of vLLM's for what MindIE ignores."""
    assert vllm(stop_token_ids=[5, -1, 2**40]).body["stop_token_ids"] == [5]


def test_include_stop_string_needs_a_stop() -> None:
    """Guards a field that MindIE reads only beside a stop."""
    assert "include_stop_str_in_output" not in vllm(include_stop_str_in_output=True).body


@pytest.mark.parametrize(
    ("medium", "url"),
    [
        ("https://host/a.jpg", "https://host/a.jpg"),
        ({"url": "https://host/a", "detail": "auto"}, "https://host/a"),
        ("/data/a b.PNG", "file:///data/a%20b.PNG"),
        ("file:///data/a.jpeg", "file:///data/a.jpeg"),
        ("data:image/png;base64,AAAA", "data:image/png;base64,AAAA"),
        ("AAAA", "data:image/jpeg;base64,AAAA"),
        ("/9j/4AAQSkZJRg==", "data:image/jpeg;base64,/9j/4AAQSkZJRg=="),
        ("/9j/" + "A/+" * 2000, "data:image/jpeg;base64,/9j/" + "A/+" * 2000),
        ("AA\nAA\n", "data:image/jpeg;base64,AA\nAA\n"),
        # Paths of any ending: who may read them is vLLM's to say, not that they are bad base64.
        ("/etc/passwd", "file:///etc/passwd"),
        ("/data/a.webp", "file:///data/a.webp"),
        ("/data/../a.tiff", "file:///data/../a.tiff"),
        ("/data/9j/a", "file:///data/9j/a"),
        ("file:///etc/passwd", "file:///etc/passwd"),
        ("file:///data/a%20b.png", "file:///data/a%20b.png"),
        ("ftp://host/a.png", "ftp://host/a.png"),
        ("HTTPS://host/a", "HTTPS://host/a"),
        ("DATA:image/png;base64,AAAA", "DATA:image/png;base64,AAAA"),
    ],
)
def test_forms_of_media(medium: Any, url: str) -> None:
    """Guards every form in which MindIE takes a picture."""
    (part,) = content({"type": "image_url", "image_url": medium})
    assert part == {"type": "image_url", "image_url": {"url": url}}


def test_order_and_empty_texts() -> None:
    """Guards the order of parts, and texts that MindIE skips."""
    empty = ({"type": "text"}, {"type": "text", "text": ""})
    assert [part["type"] for part in content(PICTURE, TEXT, *empty, PICTURE)] == [
        "image_url",
        "text",
        "image_url",
    ]
    assert asked({"prompt": [PICTURE]}).text == ""
    assert len(content(*[PICTURE] * 20)) == 20
