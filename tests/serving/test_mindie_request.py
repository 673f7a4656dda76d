# SPDX-License-Identifier: Apache-2.0
"""MindIE's requests: what vLLM is asked for, and every refusal in MindIE's words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vllm_glm41v_npu.serving.mindie_fields import Refused
from vllm_glm41v_npu.serving.mindie_request import NEITHER_STYLE, Translation, translate

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
    found = vllm(**fields, do_sample=False, other=None)
    assert (found.path, found.text) == ("/v1/completions", "Hi")
    assert found.body == {"prompt": "Hi"} | fields


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, GREEDY),
        ({"temperature": 0, "top_k": 3}, GREEDY | {"temperature": 0, "top_k": 3}),
        ({"top_k": 3}, SAMPLED | {"top_k": 3}),
        ({"top_p": 0.5}, SAMPLED | {"top_p": 0.5}),
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


STOP_LIST = (
    "Input validation error: `stop` must be list[string] if list, and item length in [1, 1024] "
    "with total <= 32768"
)

REFUSED_VLLM = {
    "ignore_eos must be boolean type.": {"ignore_eos": 1},
    "Input validation error: param stop must be string or list[string]": {"stop": 1},
    "Input validation error: length of `stop` must be in [1, 1024], but got 0": {"stop": ""},
    "Input validation error: length of `stop` must be in [1, 1024], but got 1026": {
        "stop": "\U0001f431" * 513
    },
    "Parameter stop_token_ids not array": {"stop_token_ids": 1},
    "Parameter stop_token_ids not list[int]": {"stop_token_ids": [1, True]},
    "include_stop_str_in_output must be boolean type.": {
        "stop": "a",
        "include_stop_str_in_output": 0,
    },
    "temperature must be float type.": {"temperature": "hot"},
    "Parameter temperature must be in (0.0,3.40282e+38], got -0.5.": {"temperature": -0.5},
    "top_k must be integer type.": {"top_k": 1.5},
    "Parameter top_k must be in -1 || (0,2147483647], got 0": {"top_k": 0},
    "Parameter top_p must be in (0.0,1.0], got 1.5.": {"top_p": 1.5},
    "seed must be unsigned type.": {"seed": -1},
    "Parameter seed must be in [0, 9223372036854775807], got 9223372036854775808.": {"seed": 2**63},
    "Parameter 'repetition_penalty' must be in (0.0, 3.40282e+38], got 0.": {
        "repetition_penalty": 0
    },
    "Parameter frequency_penalty should be in [-2.0, 2.0], got 3.": {"frequency_penalty": 3},
    "Parameter presence_penalty not in [-2.0, 2.0], but got -3.": {"presence_penalty": -3},
    "skip_special_tokens must be boolean type.": {"skip_special_tokens": "yes"},
    "Parameter [best_of] should be in [1, 128], got 129.": {"best_of": 129},
    "Parameter [n] should be in [1, 8192], got 0. ": {"n": 0},
    "Model must be string type.": {"model": 1},
    "Input validation error: length of `model` must be in [1, 256], but got 0": {"model": ""},
    "Parameter max_tokens not number_integer": {"max_tokens": 1.5},
    "Parameter max_tokens must be (0,2147483647], got 0": {"max_tokens": 0},
    "stream must be boolean type.": {"stream": "true"},
    "best_of should greater than or equal to n, but best_of is 1, n is 2.": {"best_of": 1, "n": 2},
    "Best_of/N can not greater than 1 when temperature is 0 or not set, but best_of is None, n is "
    "2.": {"n": 2},
    "Prompt arr is empty": {"prompt": []},
    "The type of prompt is abnormal": {"prompt": {"text": "Hi"}},
    "Prompt must be necessary and data type must be string and length in (0, 41943040], but the "
    "length of inputs is 0": {"prompt": ""},
    "The input type of '<class 'str'>' is invalid, it should be a List[Dict].": {"prompt": ["Hi"]},
    "Request param text must be string": {"prompt": [{"type": "text", "text": 1}]},
    "Request param image_url null": {"prompt": [{"type": "image_url", "image_url": None}]},
    "Request param video_url null": {"prompt": [{"type": "video_url", "video_url": None}]},
    "Request param audio_url null": {"prompt": [{"type": "audio_url", "audio_url": None}]},
    "The number of multimodal url should be no more than 20": {"prompt": [PICTURE] * 21},
    "Input type None does not match the mm type.": {"prompt": [{"text": "Hi"}]},
    "Input type audio_url does not match the mm type.": {
        "prompt": [{"type": "audio_url", "audio_url": "a.mp3"}]
    },
    "Input type video_url does not match the mm type.": {
        "prompt": [{"type": "video_url", "video_url": "AAAA"}]
    },
    "Input of image_url should be str or dict.": {
        "prompt": [{"type": "image_url", "image_url": ["a"]}]
    },
    "The length of media_url should be less than 4096, but got 5008.": {
        "prompt": [{"type": "image_url", "image_url": "https://" + "a" * 5000}]
    },
    "Image and video cannot exist in single prompt at the same time.": {
        "prompt": [PICTURE, TEXT, VIDEO]
    },
}


@pytest.mark.parametrize("message", REFUSED_VLLM)
def test_refusals_of_the_vllm_style(message: str) -> None:
    """Guards every error of this style, word by word."""
    with pytest.raises(Refused) as refused:
        asked({"prompt": "Hi"} | REFUSED_VLLM[message])
    assert (refused.value.message, refused.value.status) == (message, 422)


REFUSED_TGI = {
    "stop_list": (STOP_LIST, {"stop": ["a"] * 1025}),
    "temperature": (
        "Parameter temperature must be in (0.0,3.40282e+38], got 0.",
        {"temperature": 0},
    ),
    "top_k": ("Parameter top_k must be in -1 || (0,2147483647], got -1", {"top_k": -1}),
    "top_p": ("Parameter top_p must be in (0.0,1.0], got 1.", {"top_p": 1}),
    "typical_p": ("Parameter typical_p must be in (0.0,1.0], got 0.", {"typical_p": 0}),
    "do_sample": ("do_sample must be boolean type.", {"do_sample": 1}),
    "watermark": ("watermark must be boolean type.", {"watermark": 1}),
    "adapter_id": ("The format of adapter_id is invalid.", {"adapter_id": "a b"}),
    "max_new_tokens": (
        "Parameter max_new_tokens must be in (0,2147483647], got 0.",
        {"max_new_tokens": 0},
    ),
    "details": ("details must be boolean type.", {"details": "yes"}),
    "return_full_text": ("return_full_text must be boolean type.", {"return_full_text": 1}),
    "truncate": ("truncate must be in (0,2147483647], got 0.", {"truncate": 0}),
    "no typical sampling": (
        "Parameter typical_p is 0.5, and vLLM has no typical sampling; leave it out.",
        {"typical_p": 0.5},
    ),
}


@pytest.mark.parametrize("case", REFUSED_TGI)
def test_refusals_of_the_tgi_style(case: str) -> None:
    """Guards every error that this style does not share."""
    message, parameters = REFUSED_TGI[case]
    with pytest.raises(Refused) as refused:
        tgi(**parameters)
    assert (refused.value.message, refused.value.status) == (message, 422)


@pytest.mark.parametrize("stop", [["a", 1], ["a", ""], ["a" * 1025], ["a" * 1024] * 33])
def test_bad_lists_of_stops(stop: list[Any]) -> None:
    """Guards the lengths, and the sum of them."""
    with pytest.raises(Refused) as refused:
        vllm(stop=stop)
    assert refused.value.message == STOP_LIST


@pytest.mark.parametrize(
    ("body", "stream", "message"),
    [
        ({"inputs": []}, False, "Inputs arr is empty"),
        ({"inputs": 1}, False, "The type of inputs is abnormal"),
        ({"inputs": ""}, False, "Inputs length must be in (0, 41943040], but got 0"),
        ({"inputs": "Hi", "parameters": []}, False, "parameters must be object type."),
        ({}, True, "Request should contain 'inputs' and the type should be string."),
        (
            {"inputs": "Hi", "parameters": {"decoder_input_details": True}},
            True,
            "The decoder_input_details must not be true when stream is true.",
        ),
    ],
)
def test_refusals_of_inputs(body: dict[str, Any], stream: bool, message: str) -> None:
    """Guards what the TGI style says of its prompt."""
    with pytest.raises(Refused) as refused:
        asked(body, tgi_stream=stream)
    assert refused.value.message == message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b"{}",
        b'{"prompt": null}',
        b'{"prompt": NaN}',
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"prompt": ' + b"1" * 5000 + b"}",
    ],
)
def test_neither_style(data: bytes) -> None:
    """Guards the answer to a body that is no request: MindIE's JSON within JSON."""
    with pytest.raises(Refused) as refused:
        translate(data)
    assert json.loads(refused.value.message) == NEITHER_STYLE
