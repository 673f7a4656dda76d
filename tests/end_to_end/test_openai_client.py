# SPDX-License-Identifier: Apache-2.0
"""What `vllm serve` has beside plain answers works with pictures, for the OpenAI Python client."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.end_to_end.bad_media import FIRST, QUESTION
from tests.end_to_end.servers import NUMBER_SCHEMA, PICTURES, VIDEOS, data_uri, video_uri

THINKING, NUMBER = "I see the digits 6 0 2 1.", "6021"
WRITTEN = f"<think>{THINKING}</think><answer>{NUMBER}</answer>"
BLOCK = 128
"""Tokens that vLLM caches together, on a CPU and on an NPU."""


@pytest.fixture(scope="module")
def client(server: httpx.Client) -> Iterator[OpenAI]:
    """Keeps its connections open, and tries nothing twice."""
    with OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def picture(name: str = "printed.png") -> str:
    return data_uri((PICTURES / name).read_bytes())


def messages(text: str, *urls: Any) -> list[Any]:
    """Of URLs in an object as OpenAI has it, or of strings alone, as vLLM takes them too."""
    media: list[dict[str, Any]] = []
    for url in urls:
        kind = "video_url" if "video" in str(url)[:20] else "image_url"
        media.append({kind: url} if isinstance(url, str) else {"type": kind, kind: url})
    return [{"role": "user", "content": [*media, {"type": "text", "text": text}]}]


def ask(client: OpenAI, text: str, *urls: Any, **options: Any) -> Any:
    options = {"temperature": 0, "model": "tiny"} | options
    return client.chat.completions.create(messages=messages(text, *urls), **options)


def responses_input(url: str) -> list[Any]:
    image = {"type": "input_image", "image_url": url, "detail": "auto"}
    return [{"role": "user", "content": [image, {"type": "input_text", "text": QUESTION}]}]


@pytest.mark.parametrize("form", ["object", "string"])
def test_a_picture(client: OpenAI, form: str) -> None:
    """Guards both forms of a URL, and the count of tokens."""
    url = picture()
    answer = ask(client, QUESTION, {"url": url} if form == "object" else url)
    assert answer.choices[0].message.content == WRITTEN
    assert answer.choices[0].finish_reason == "stop"
    usage = answer.usage
    text_alone = ask(client, QUESTION, max_tokens=1).usage.prompt_tokens
    assert usage.prompt_tokens > text_alone
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream(client: OpenAI) -> None:
    """Guards the pieces of an answer, and the usage at its end."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(ask(client, QUESTION, {"url": picture()}, **options))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == WRITTEN
    assert len(pieces) > 1
    assert chunks[-1].usage == ask(client, QUESTION, {"url": picture()}).usage


@pytest.mark.parametrize("stream", [False, True])
def test_a_video(client: OpenAI, stream: bool) -> None:
    """Guards clips, whole and in pieces."""
    expected = json.loads((VIDEOS / "answers.json").read_text())["numbers.mp4"]["first"]
    url = video_uri((VIDEOS / "numbers.mp4").read_bytes())
    answer = ask(client, FIRST, {"url": url}, stream=stream)
    if stream:
        content = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        content = answer.choices[0].message.content
    assert f"<answer>{expected}</answer>" in content


def test_several_answers(client: OpenAI) -> None:
    """Guards n with a picture, whose tokens the answers share."""
    answer = ask(client, QUESTION, {"url": picture()}, n=2, temperature=0.01)
    assert [choice.message.content for choice in answer.choices] == [WRITTEN] * 2


def test_sampling_parameters_of_vllm(client: OpenAI) -> None:
    """Guards top_k and repetition_penalty, which the client sends as they are."""
    hot = {"temperature": 5.0, "extra_body": {"top_k": 1, "repetition_penalty": 1.0}}
    answer = ask(client, QUESTION, {"url": picture()}, **hot)
    assert answer.choices[0].message.content == WRITTEN
    penalty = {"extra_body": {"repetition_penalty": 20.0}}
    assert ask(client, QUESTION, {"url": picture()}, **penalty).choices[0].message.content != (
        WRITTEN
    )


def test_logprobs(client: OpenAI) -> None:
    """Guards a token's probability, of a greedy answer the highest."""
    answer = ask(client, QUESTION, {"url": picture()}, logprobs=True, top_logprobs=2)
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens).startswith(WRITTEN)
    for token in tokens:
        best, second = token.top_logprobs
        assert (best.token, best.logprob) == (token.token, token.logprob)
        assert second.logprob < best.logprob <= 0


def has_the_form(content: str) -> bool:
    found = json.loads(content)
    return found.keys() == {"number"} and re.fullmatch("[0-9]{4}", found["number"]) is not None


def test_a_json_schema(client: OpenAI) -> None:
    """Guards structured output with a picture: its form, as the tiny model has to think to read."""
    form = {"type": "json_schema", "json_schema": {"name": "number", "schema": NUMBER_SCHEMA}}
    answer = ask(client, QUESTION, {"url": picture()}, response_format=form)
    assert has_the_form(answer.choices[0].message.content)


def test_cached_tokens(client: OpenAI) -> None:
    """Guards prompt caching: of the same picture alone, and then with the same answer."""
    text = "7" * 2 * BLOCK + QUESTION

    def asked(name: str) -> tuple[int, str]:
        answer = ask(client, text, {"url": picture(name)})
        details = answer.usage.prompt_tokens_details
        return details.cached_tokens if details else 0, answer.choices[0].message.content

    cached, first = asked("printed.png")
    assert cached == 0
    cached, again = asked("printed.png")
    assert cached >= 2 * BLOCK
    assert again == first
    assert asked("handwritten.png")[0] == 0


def test_a_completion(client: OpenAI) -> None:
    """Guards text without the chat template, and its stream."""
    prompt = f"[gMASK]<sop><|user|>\n{QUESTION}<|assistant|>\n"
    options: dict[str, Any] = {"model": "tiny", "prompt": prompt, "temperature": 0}
    options |= {"max_tokens": 64}
    answer = client.completions.create(**options)
    assert answer.choices[0].text == ask(client, QUESTION).choices[0].message.content
    chunks = client.completions.create(**options, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


def test_responses(client: OpenAI) -> None:
    """Guards /v1/responses with a picture: whole, in pieces, and by a schema."""
    options: dict[str, Any] = {"model": "tiny", "input": responses_input(picture())}
    options |= {"temperature": 0}
    assert client.responses.create(**options).output_text == WRITTEN
    events = client.responses.create(**options, stream=True)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == WRITTEN
    assert len(deltas) > 1
    form = {"type": "json_schema", "name": "number", "schema": NUMBER_SCHEMA}
    bound = client.responses.create(**options, text={"format": form})
    assert has_the_form(bound.output_text)


def test_a_bad_picture_leaves_the_connection_open(client: OpenAI) -> None:
    """Guards clients that keep connections: the next request used to fail, on a closed one."""
    wide = data_uri((PICTURES / "printed.png").read_bytes()[:100])
    for url in ("data:image/png;base64,QUJD", "data:image/png;base64,!", wide, "file:///none.png"):
        with pytest.raises(openai.BadRequestError):
            ask(client, QUESTION, {"url": url})
        with pytest.raises(openai.BadRequestError):
            client.responses.create(model="tiny", input=responses_input(url))
        assert ask(client, QUESTION, {"url": picture()}).choices[0].message.content == WRITTEN
