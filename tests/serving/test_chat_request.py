# SPDX-License-Identifier: Apache-2.0
"""Bodies before vLLM sees them: what is refused in a sentence, and what is put into its words."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from vllm_glm41v_npu.serving.chat_request import prepare

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
BATCH, TOKENIZE = "/v1/chat/completions/batch", "/tokenize"
COUNT = "/v1/messages/count_tokens"
PNG, MP4 = "data:image/png;base64,QUJD", "data:video/mp4;base64,QUJD"
SOURCE = {"type": "base64", "media_type": "image/png", "data": "QUJD"}

EMBEDDINGS = {"image_embeds": "QUJD", "image_grid_thw": "QUJD"}

PICTURES: dict[str, dict[str, Any]] = {
    "as OpenAI": {"type": "image_url", "image_url": {"url": PNG}},
    "with detail": {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}},
    "a plain string": {"type": "image_url", "image_url": PNG},
    "without a type": {"image_url": PNG},
    "without a type, an object": {"image_url": {"url": PNG}},
    "as transformers": {"type": "image", "image": PNG},
    "as transformers, a url": {"type": "image", "url": PNG},
    "mixed": {"type": "image", "image_url": {"url": PNG}},
    "as responses": {"type": "input_image", "image_url": PNG, "detail": "auto"},
    "without detail": {"type": "input_image", "image_url": PNG},
    "an object": {"type": "input_image", "image_url": {"url": PNG}},
    "as Anthropic": {"type": "image", "source": SOURCE},
    "as Anthropic, a url": {"type": "image", "source": {"type": "url", "url": PNG}},
}
VIDEOS: dict[str, dict[str, Any]] = {
    "as OpenAI": {"type": "video_url", "video_url": {"url": MP4}},
    "a plain string": {"type": "video_url", "video_url": MP4},
    "without a type": {"video_url": MP4},
    "as transformers": {"type": "video", "video": MP4},
    "a url": {"type": "video", "url": MP4},
    "as responses": {"type": "input_video", "video_url": MP4},
}
OF_PICTURES: dict[str, dict[str, Any]] = {
    CHAT: PICTURES["as OpenAI"],
    TOKENIZE: PICTURES["as OpenAI"],
    BATCH: PICTURES["as OpenAI"],
    RESPONSES: PICTURES["as responses"],
    MESSAGES: PICTURES["as Anthropic, a url"],
    COUNT: PICTURES["as Anthropic, a url"],
}
"""Route to the one form that vLLM takes there."""


def body_of(path: str, parts: Any, **fields: Any) -> dict[str, Any]:
    """A body with one message of the user's."""
    messages: list[Any] = [{"role": "user", "content": copy.deepcopy(parts)}]
    if path == RESPONSES:
        return {"input": messages, **fields}
    return {"messages": [messages] if path == BATCH else messages, **fields}


def parts_of(path: str, body: dict[str, Any]) -> Any:
    messages = body["input" if path == RESPONSES else "messages"]
    return (messages[0] if path == BATCH else messages)[0]["content"]


@pytest.mark.parametrize("path", OF_PICTURES)
@pytest.mark.parametrize("form", PICTURES)
def test_pictures(path: str, form: str) -> None:
    """Guards every form on every route."""
    body = body_of(path, [PICTURES[form], "What?"])
    prepare(path, body)
    picture, text = parts_of(path, body)
    detail = {"detail": "low"} if form == "with detail" and path == RESPONSES else {}
    assert picture in (OF_PICTURES[path], OF_PICTURES[path] | detail)
    assert text == {"type": "input_text" if path == RESPONSES else "text", "text": "What?"}
    again = copy.deepcopy(body)
    prepare(path, again)
    assert again == body


@pytest.mark.parametrize("path", OF_PICTURES)
@pytest.mark.parametrize("form", VIDEOS)
def test_videos(path: str, form: str) -> None:
    """Guards every form where there are videos, and one true sentence where there are none."""
    body = body_of(path, [VIDEOS[form]])
    if path in (RESPONSES, MESSAGES, COUNT):
        with pytest.raises(
            ValueError, match=r"content\[0\] is a video, and /v1/.* takes none; send"
        ):
            prepare(path, body)
    else:
        prepare(path, body)
        assert parts_of(path, body) == [VIDEOS["as OpenAI"]]


BAD_PARTS = {
    "no picture": ({"type": "image"}, "is of type 'image' and brings no image; expected"),
    "no url": ({"type": "image_url"}, "is of type 'image_url' and brings no image; expected"),
    "null": ({"type": "image_url", "image_url": None}, "brings no image; expected"),
    "null url": ({"type": "image_url", "image_url": {"url": None}}, r"image_url is {'url': None};"),
    "a number": ({"type": "image_url", "image_url": 5}, "image_url is 5; expected a URL"),
    "a list": ({"type": "image_url", "image_url": [PNG]}, "image_url is .*; expected a URL"),
    "a file": ({"type": "image", "source": {"type": "file", "file_id": "a"}}, "source is .*; expe"),
    "no data": ({"type": "image", "source": {"type": "base64"}}, "source has no data; expected"),
    "sound": ({"type": "input_audio", "input_audio": "x"}, "is of type 'input_audio', and this m"),
    "a document": ({"type": "pdf", "pdf": "x"}, "is of type 'pdf', and this model takes text"),
    "nothing": (None, r"content\[0\] is None; expected an object with a type, or text"),
    "number": (3, r"content\[0\] is 3; expected an object"),
    "empty": ({}, "has no type; expected one"),
    "a list of types": ({"type": ["text"], "text": "a"}, r"type is \['text'\]; expected text"),
    "no text": ({"type": "text"}, "text is missing; expected text"),
    "null text": ({"type": "text", "text": None}, "text is None; expected text"),
    "a number as text": ({"type": "text", "text": 5}, "text is 5; expected text"),
}


@pytest.mark.parametrize("path", OF_PICTURES)
@pytest.mark.parametrize("name", BAD_PARTS)
def test_bad_parts(path: str, name: str) -> None:
    """Guards sentences that say where it is, what was found and what was expected."""
    part, sentence = BAD_PARTS[name]
    with pytest.raises(ValueError, match=sentence) as refusal:
        prepare(path, body_of(path, [part]))
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 250


BAD_MESSAGES = {
    "none": ([], "is empty; expected at least one message"),
    "null": (None, "is None; expected a list of messages"),
    "object": ({"role": "user", "content": "a"}, "is {.*; expected a list of messages"),
    "a string in it": (["hi"], r"\[0\] is 'hi'; expected an object"),
    "a null in it": ([None], r"\[0\] is None; expected an object"),
    "no role": ([{"content": "a"}], r"\[0\] has no role; expected \"user\""),
    "null role": ([{"role": None, "content": "a"}], r"\[0\] has the role None; expected"),
    "a number as role": ([{"role": 3, "content": "a"}], r"\[0\] has the role 3; expected"),
    "no content": ([{"role": "user"}], r"\[0\] has no content; expected text"),
    "null content": ([{"role": "user", "content": None}], r"\[0\].content is None; expected text"),
    "content object": ([{"role": "user", "content": {}}], r"\[0\].content is {}; expected text"),
    "the second": ([{"role": "user", "content": "a"}, {"content": "a"}], r"\[1\] has no role"),
}


@pytest.mark.parametrize("path", [CHAT, MESSAGES, COUNT, RESPONSES, TOKENIZE])
@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_bad_messages(path: str, name: str) -> None:
    """Guards against "list index out of range", and forty lines about a role."""
    messages, sentence = BAD_MESSAGES[name]
    field = "input" if path == RESPONSES else "messages"
    with pytest.raises(
        ValueError, match=f"^{field}{sentence}" if sentence[0] == "\\" else sentence
    ):
        prepare(path, {field: messages})


def test_bad_batches() -> None:
    """Guards batches, whose messages are in lists of their own."""
    for messages, sentence in [
        ([[]], r"messages\[0\] is empty"),
        ([], "messages is empty"),
        ([{"role": "user", "content": "a"}], r"messages\[0\] is .*; expected a list of messages"),
        ([[{"role": "user", "content": "a"}], [{}]], r"messages\[1\]\[0\] has no role"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            prepare(BATCH, {"messages": messages})


BAD_FIELDS = {
    "structured_outputs": "x",
    "response_format": "json",
    "chat_template_kwargs": "x",
    "stream_options": [],
    "mm_processor_kwargs": 3,
    "top_logprobs": "1",
    "prompt_logprobs": True,
    "tools": "x",
    "include_reasoning": "no",
    "thinking": "off",
    "thinking_token_budget": 2**70,
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_bad_fields(name: str) -> None:
    """Guards fields that vLLM looks into before it knows what they are: 500, or a riddle."""
    with pytest.raises(ValueError, match=f"^{name} is .*; expected "):
        prepare(CHAT, body_of(CHAT, "hi", **{name: BAD_FIELDS[name]}))
    prepare(CHAT, body_of(CHAT, "hi", **{name: None}))


def test_completions() -> None:
    """Guards /v1/completions, where logprobs is a number, and null is 500 in vLLM."""
    body = {"prompt": "hi", "logprobs": 1, "max_tokens": None}
    prepare("/v1/completions", body)
    assert body == {"prompt": "hi", "logprobs": 1}
    with pytest.raises(ValueError, match="^logprobs is 'x'; expected a whole number"):
        prepare("/v1/completions", {"prompt": "hi", "logprobs": "x"})
    prepare(CHAT, body_of(CHAT, "hi", logprobs=True, thinking_token_budget=-1))


@pytest.mark.parametrize("tool", [3, {}, {"function": "x"}, {"type": "function", "function": {}}])
def test_bad_tools(tool: Any) -> None:
    """Guards tools without a name."""
    with pytest.raises(ValueError, match=r"^tools\[0\] is .*; expected "):
        prepare(CHAT, body_of(CHAT, "hi", tools=[tool], tool_choice="required"))


def test_values_without_end() -> None:
    """Guards refusals of long and deep values: in time, in a sentence, and in the stack."""
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    for value in (deep, "a" * 10**8, {str(number): number for number in range(10**5)}):
        with pytest.raises(ValueError, match="expected") as refusal:
            prepare(CHAT, {"messages": value})
        assert len(str(refusal.value)) < 250


@pytest.mark.parametrize("body", [None, [], "a", 3])
def test_no_object(body: Any) -> None:
    """Guards bodies of any other JSON."""
    with pytest.raises(ValueError, match="^The body is .*; expected a JSON object"):
        prepare(CHAT, body)


@pytest.mark.parametrize("path", OF_PICTURES)
@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, None),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, True),
        ({"thinking": None}, None),
        ({"enable_thinking": False}, False),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "low"}, None),
        ({"reasoning": {"effort": "none"}}, False),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"chat_template_kwargs": {"thinking": False}}, False),
        ({"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "none"}, True),
        ({"thinking": {"type": "enabled"}, "reasoning_effort": "none"}, True),
    ],
)
def test_thinking(path: str, fields: dict[str, Any], wanted: bool | None) -> None:
    """Guards every way to switch it off, on every route."""
    body = body_of(path, "hi", **copy.deepcopy(fields))
    prepare(path, body)
    assert (body.get("chat_template_kwargs") or {}).get("enable_thinking") is wanted
    assert "thinking" not in body  # vLLM would log that it ignores it


def test_reasoning_left_out_of_anthropics_answers() -> None:
    """Guards a field that vLLM drops there."""
    body = body_of(MESSAGES, "hi", include_reasoning=False)
    prepare(MESSAGES, body)
    assert body["chat_template_kwargs"] == {"include_reasoning": False}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "tool_calls": []},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "4", "tool_call_id": "a"},
        {"role": "wizard", "content": "hi"},
        {"role": "user", "content": []},
        {"role": "user", "content": [{"type": "image_embeds", "image_embeds": EMBEDDINGS}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": None, "uuid": "a"}]},
    ],
)
def test_what_is_left_to_vllm(message: dict[str, Any]) -> None:
    """Guards messages that are right as they are."""
    body = {"messages": [copy.deepcopy(message)]}
    prepare(CHAT, body)
    assert body == {"messages": [message]}


@pytest.mark.parametrize("value", ["QUJD", {}, {"image_embeds": "QUJD"}, EMBEDDINGS | {"a": "b"}])
@pytest.mark.parametrize("is_number", [False, True])
def test_embeddings(value: Any, is_number: bool) -> None:
    """Guards embeddings without their grid, with something else, and of no base64."""
    value = EMBEDDINGS | {"image_grid_thw": 3} if is_number else value
    part = {"type": "image_embeds", "image_embeds": value}
    with pytest.raises(ValueError, match=r"image_embeds is .*; expected an object with image_emb"):
        prepare(CHAT, body_of(CHAT, [part]))


def test_items_of_responses_that_are_no_messages() -> None:
    """Guards calls of tools in /v1/responses, and answers of earlier turns."""
    items = [
        {"type": "function_call_output", "call_id": "a", "output": "4"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "4"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "4"}]},
    ]
    body = {"input": copy.deepcopy(items)}
    prepare(RESPONSES, body)
    assert body["input"] == [*items[:2], items[1]]
    for given in ("hi", ""):
        prepare(RESPONSES, {"input": given})


@pytest.mark.parametrize(
    "block",
    [
        {"type": "tool_use", "id": "a", "name": "b", "input": {}},
        {"type": "tool_result", "tool_use_id": "a", "content": "4"},
        {"type": "thinking", "thinking": "Hm.", "signature": "a"},
        {"type": "redacted_thinking", "data": "a"},
    ],
)
def test_blocks_of_anthropic(block: dict[str, Any]) -> None:
    """Guards blocks that only Anthropic's messages have."""
    body = {"messages": [{"role": "assistant", "content": [block]}]}
    prepare(MESSAGES, body)
    assert body["messages"][0]["content"] == [block]
