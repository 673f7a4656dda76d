# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a request, in MindIE's words: every refusal."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vllm_glm41v_npu.serving.mindie.fields import Refused
from vllm_glm41v_npu.serving.mindie.request import NEITHER_STYLE, translate

PICTURE = {"type": "image_url", "image_url": "https://host/a.jpg"}
VIDEO = {"type": "video_url", "video_url": "https://host/a.mp4"}
TEXT = {"type": "text", "text": "What?"}


def refusal(body: Any, **options: Any) -> str:
    with pytest.raises(Refused) as refused:
        translate(json.dumps(body).encode(), **options)
    assert refused.value.status == 422
    return refused.value.message


STOP_LIST = (
    "Input validation error: `stop` must be list[string] if list, and item length in [1, 1024] "
    "with total <= 32768"
)

REFUSED_VLLM: dict[str, dict[str, Any]] = {
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
    "stream must be boolean type.": {"stream": 1},
    'stream must be boolean type. "true" is a string; leave out the quotes.': {"stream": "true"},
    'temperature must be float type. "0" is a string; leave out the quotes.': {"temperature": "0"},
    "Input of image_url is an empty string; give a URL, a path or base64.": {
        "prompt": [{"type": "image_url", "image_url": ""}]
    },
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
    assert refusal({"prompt": "Hi"} | REFUSED_VLLM[message]) == message


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
    assert refusal({"inputs": "Hi", "parameters": parameters}) == message


@pytest.mark.parametrize("stop", [["a", 1], ["a", ""], ["a" * 1025], ["a" * 1024] * 33])
def test_bad_lists_of_stops(stop: list[Any]) -> None:
    """Guards the lengths, and the sum of them."""
    assert refusal({"prompt": "Hi", "stop": stop}) == STOP_LIST


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
    assert refusal(body, tgi_stream=stream) == message


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
