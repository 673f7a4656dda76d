# SPDX-License-Identifier: Apache-2.0
"""Whatever the media and the numbers of a request are, the caller hears what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.end_to_end.fuzzing import ANYTHING, BOUNDED, CLIP, KINDS, NUMBERS, PARTS, PICTURE

GOOD = [
    {"type": kind, kind: {"url": url}} for kind, url in zip(KINDS, (PICTURE, CLIP), strict=True)
]
PIXELS = ["min_pixels", "max_pixels", "fps", "num_frames", "max_frames", "size", "do_resize"]
SIZES = st.dictionaries(st.sampled_from(["shortest_edge", "longest_edge"]), NUMBERS)
PROCESSOR = st.dictionaries(st.sampled_from(PIXELS), NUMBERS | SIZES | ANYTHING, max_size=2)
LOADER = st.dictionaries(
    st.sampled_from(["fps", "num_frames", "max_frames", "image_mode", "rgba_background_color"]),
    NUMBERS | ANYTHING,
    max_size=2,
)
SAMPLING = ["temperature", "top_k", "top_p", "repetition_penalty", "seed", "top_logprobs"]
SAMPLING += ["truncate_prompt_tokens", "presence_penalty", "min_p"]
OPTIONS = st.one_of(
    st.builds(lambda chosen: {"mm_processor_kwargs": chosen}, PROCESSOR | ANYTHING),
    st.builds(
        lambda chosen: {"media_io_kwargs": chosen},
        st.dictionaries(st.sampled_from(["image", "video"]), LOADER | ANYTHING) | ANYTHING,
    ),
    st.dictionaries(st.sampled_from(SAMPLING), NUMBERS, min_size=1, max_size=2),
    st.fixed_dictionaries({"n": st.integers(-1, 3), "max_tokens": st.integers(-1, 3)}),
)


def post(server: httpx.Client, content: Any, options: dict[str, Any]) -> httpx.Response:
    body = {"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": content}]}
    data = json.dumps(body | options).encode()  # also what is not in JSON, as NaN
    headers = {"Content-Type": "application/json"}
    return server.post("/v1/chat/completions", content=data, headers=headers)


def check(server: httpx.Client, content: Any, options: dict[str, Any]) -> None:
    response = post(server, content, options)
    assert response.status_code in (200, 400), (response.status_code, response.text)
    assert "InternalServerError" not in response.text  # nor in a stream


@pytest.fixture(autouse=True)
def answers_afterwards(server: httpx.Client) -> Iterator[None]:
    """The engine is alive after all examples, and right."""
    yield
    part = {"type": "image_url", "image_url": {"url": PICTURE}}
    response = post(server, [part], {"max_tokens": 30, "temperature": 0})
    assert "<answer>6021</answer>" in response.text


@BOUNDED
@given(content=st.lists(PARTS, min_size=1, max_size=2), stream=st.booleans())
def test_any_media(server: httpx.Client, content: Any, stream: bool) -> None:
    """Guards against a 500 or a hang for whatever stands where a picture or a video should."""
    check(server, content, {"stream": stream})


@BOUNDED
@given(part=st.sampled_from(GOOD), options=OPTIONS)
def test_any_settings(server: httpx.Client, part: Any, options: dict[str, Any]) -> None:
    """Guards settings of a picture and a video, and numbers out of range."""
    check(server, [part], options)
