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

from tests.end_to_end.fuzzing import ANYTHING, BOUNDED, KINDS, NUMBERS, PARTS, PICTURE

CONTENTS = st.lists(PARTS, min_size=1, max_size=3)
PIXELS = ["min_pixels", "max_pixels", "fps", "num_frames", "max_frames", "size", "do_resize"]
SIZES = st.dictionaries(st.sampled_from(["shortest_edge", "longest_edge"]), NUMBERS)
MEDIA_SETTINGS = {
    "mm_processor_kwargs": ANYTHING
    | st.dictionaries(st.sampled_from(PIXELS), NUMBERS | SIZES | ANYTHING, max_size=2),
    "media_io_kwargs": ANYTHING
    | st.dictionaries(
        st.sampled_from(["image", "video"]),
        ANYTHING | st.dictionaries(st.sampled_from([*PIXELS, "video_backend"]), NUMBERS),
    ),
}
SAMPLING = ["temperature", "top_k", "top_p", "repetition_penalty", "seed", "top_logprobs"]
SAMPLING += ["truncate_prompt_tokens", "presence_penalty", "min_p"]
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        **MEDIA_SETTINGS,
        **dict.fromkeys(SAMPLING, NUMBERS),
        "n": st.integers(-1, 3),
        "max_tokens": st.integers(-1, 3),
        "stream": st.booleans(),
    },
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
@given(content=CONTENTS | st.builds(lambda kind: [{"type": kind}], st.sampled_from(KINDS)))
def test_any_media(server: httpx.Client, content: Any) -> None:
    """Guards against a 500 or a hang for whatever stands where a picture or a video should."""
    check(server, content, {})


@BOUNDED
@given(content=CONTENTS, options=OPTIONS)
def test_any_settings(server: httpx.Client, content: Any, options: dict[str, Any]) -> None:
    """Guards settings of media, and numbers out of range, beside media of all kinds."""
    check(server, content, options)
