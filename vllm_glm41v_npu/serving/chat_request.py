# SPDX-License-Identifier: Apache-2.0
"""The body of a request to one of vLLM's routes, before vLLM validates it.

A body that vLLM would refuse in a hundred lines, or misread, is refused here in a sentence; fields
that it would ignore are put into a form that it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vllm_glm41v_npu.serving.answer_parser import INCLUDE_REASONING
from vllm_glm41v_npu.serving.asgi import BATCH, CHAT, COMPLETIONS, MESSAGES, RESPONSES
from vllm_glm41v_npu.serving.chat_parts import (
    Form,
    for_chat,
    for_messages,
    for_responses,
    refuse,
    shown,
)
from vllm_glm41v_npu.serving.thinking_switch import (
    ENABLE_THINKING,
    THINKING,
    of_thinking,
    wanted_thinking,
)

KWARGS = "chat_template_kwargs"
EXAMPLE = '{"role": "user", "content": "..."}'

ITEMS = ("function_call", "function_call_output", "reasoning")
"""Items of /v1/responses that are no messages, and that vLLM 0.23.0 turns into messages."""

OBJECTS = (
    "response_format",
    "structured_outputs",
    "stream_options",
    KWARGS,
    "mm_processor_kwargs",
    "media_io_kwargs",
    "logit_bias",
    "reasoning",
)
INTEGERS = ("top_logprobs", "prompt_logprobs")
"""Fields that vLLM 0.23.0 uses before it has checked their type."""

BUDGET = "thinking_token_budget"
"""A number that has 32 bits in the engine, which vLLM 0.23.0 does not check."""

TO_THE_ENGINE = ("stop_token_ids", "vllm_xargs", "kv_transfer_params", "ec_transfer_params")
"""Fields that go to the engine as they are: numbers of over 64 bits are 500 in vLLM 0.23.0."""

WORDS, MOST_WORDS = ("bad_words", "stop"), 256
"""Lists of words that vLLM 0.23.0 handles on the event loop, where 10,000 take 11 s."""


def prepare(path: str, body: Any) -> None:
    """Check the parsed `body` of a request to the route `path`, and change it in place.

    Raises VLLMValidationError, which vLLM answers with 400.
    """
    if not isinstance(body, dict):
        raise refuse(f"The body is {shown(body)}; expected a JSON object.")
    _check(body, OBJECTS, "an object", lambda value: isinstance(value, dict))
    _check(body, INTEGERS, "a whole number", lambda value: type(value) is int)
    _check(body, (BUDGET,), "a whole number from 0 to 2147483647, or -1", _is_count)
    _check_numbers(body)
    _check_words(body)
    if path == COMPLETIONS:
        _prepare_completion(body)
    _check_tools(path, body)
    form = _form(path)
    for name, messages in _conversations(path, body):
        _check_messages(name, messages)
        for number, message in enumerate(messages):
            _put_into_form(f"{name}[{number}]", message, form)
            if path == RESPONSES:
                _join_answer(message)
    if path == CHAT and "messages" in body:
        _check_echo(body)
    if "messages" in body or "input" in body:
        _switch_thinking(path, body)


def _check(
    body: Mapping[str, Any], names: tuple[str, ...], expected: str, fits: Callable[[Any], bool]
) -> None:
    for name in names:
        value = body.get(name)
        if value is not None and not fits(value):
            raise refuse(f"{name} is {shown(value)}; expected {expected}.")


def _prepare_completion(body: dict[str, Any]) -> None:
    """Check what /v1/completions has of its own; there null as max_tokens is 500 in vLLM 0.23.0."""
    _check(body, ("logprobs",), "a whole number", lambda value: type(value) is int)
    if body.get("max_tokens", 0) is None:
        del body["max_tokens"]


def _is_count(value: Any) -> bool:
    return type(value) is int and -1 <= value < 2**31


def _check_numbers(body: Mapping[str, Any]) -> None:
    for name in TO_THE_ENGINE:
        values = [body.get(name)]
        for value in values:  # which grows by what is in it
            if isinstance(value, dict):
                values.extend(value.values())
            elif isinstance(value, list):
                values.extend(value)
            elif isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise refuse(f"{name} has {shown(value)}; expected numbers of at most 64 bits.")


def _check_words(body: Mapping[str, Any]) -> None:
    for name in WORDS:
        words = body.get(name)
        if isinstance(words, list) and len(words) > MOST_WORDS:
            raise refuse(f"{name} has {len(words):,} words; expected at most {MOST_WORDS}.")


def _check_tools(path: str, body: Mapping[str, Any]) -> None:
    tools = body.get("tools")
    if tools is None:
        return
    if not isinstance(tools, list):
        raise refuse(f"tools is {shown(tools)}; expected a list of objects.")
    is_flat = path.startswith((MESSAGES, RESPONSES))
    for number, tool in enumerate(tools):
        function = tool.get("function", {}) if isinstance(tool, dict) and not is_flat else tool
        if not isinstance(function, dict) or (not is_flat and "name" not in function):
            expected = "an object" if is_flat else '{"type": "function", "function": {"name": ...}}'
            raise refuse(f"tools[{number}] is {shown(tool)}; expected {expected}.")


def _form(path: str) -> Form:
    if path.startswith(MESSAGES):
        return for_messages
    return for_responses if path == RESPONSES else for_chat


def _conversations(path: str, body: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (name, messages) of each conversation; a field that is not there is left to vLLM."""
    if path == RESPONSES:
        if "input" in body and not isinstance(body["input"], str):
            yield "input", body["input"]
    elif path == BATCH and isinstance(body.get("messages"), list) and body["messages"]:
        yield from ((f"messages[{n}]", each) for n, each in enumerate(body["messages"]))
    elif "messages" in body:
        yield "messages", body["messages"]


def _check_messages(name: str, messages: Any) -> None:
    if not isinstance(messages, list):
        raise refuse(f"{name} is {shown(messages)}; expected a list of messages like {EXAMPLE}.")
    if not messages:
        raise refuse(f"{name} is empty; expected at least one message, such as {EXAMPLE}.")
    for number, message in enumerate(messages):
        _check_message(f"{name}[{number}]", message)


def _check_message(name: str, message: Any) -> None:
    if not isinstance(message, dict):
        raise refuse(f"{name} is {shown(message)}; expected an object like {EXAMPLE}.")
    if message.get("type", "message") != "message":
        _check_item(name, message)
        return
    role = message.get("role")
    if not isinstance(role, str) or not role:
        found = f"has the role {shown(role)}" if "role" in message else "has no role"
        raise refuse(f'{name} {found}; expected "user", "assistant" or "system".')
    content = message.get("content")
    if content is None and role not in ("user", "system"):
        return
    if not isinstance(content, str | list):
        found = f"{name}.content is {shown(content)}"
        found = found if "content" in message else f"{name} has no content"
        raise refuse(f"{found}; expected text, or a list of texts, pictures and videos.")


def _check_item(name: str, item: Mapping[str, Any]) -> None:
    """Check an item of /v1/responses that is no message, such as a call of a tool."""
    if not item.get("role") and item["type"] not in ITEMS:
        raise refuse(
            f"{name} is of type {shown(item['type'])}; expected a message like {EXAMPLE}, or one "
            f"of {', '.join(ITEMS)}."
        )


def _check_echo(body: Mapping[str, Any]) -> None:
    """Refuse to echo parts that are not text, and any parts in a stream: 500 in vLLM 0.23.0."""
    if not body.get("echo") or body.get("add_generation_prompt") is not False:
        return
    content = body["messages"][-1].get("content")
    if isinstance(content, list) and (
        body.get("stream") or any("text" not in part for part in content)
    ):
        raise refuse(
            "echo repeats the last message as text, and that is a list of parts; expected one "
            "text. Send it so, or without echo, or let the model answer (add_generation_prompt)."
        )


def _join_answer(message: dict[str, Any]) -> None:
    """Make an earlier answer in /v1/responses one text: vLLM 0.23.0 takes its first part alone.

    No part, or a refusal, is 500 there.
    """
    content = message.get("content")
    if message.get("role") != "assistant" or not isinstance(content, list):
        return
    texts = [part.get("text", part.get("refusal")) for part in content]
    is_one = len(content) == 1 and "text" in content[0]
    if not is_one and all(isinstance(text, str) for text in texts):
        one = {"type": "output_text", "text": "".join(texts), "annotations": []}
        message["content"] = [one]


def _put_into_form(name: str, message: dict[str, Any], form: Form) -> None:
    content = message.get("content")
    if isinstance(content, list) and message.get("type", "message") == "message":
        message["content"] = [
            form(f"{name}.content[{number}]", part, message["role"])
            for number, part in enumerate(content)
        ]


def _switch_thinking(path: str, body: dict[str, Any]) -> None:
    """Put every way to switch the thinking off, or on, into `chat_template_kwargs`."""
    switches = (INCLUDE_REASONING, ENABLE_THINKING)
    _check(body, switches, "true or false", lambda value: isinstance(value, bool))
    given = dict(body.get(KWARGS) or {})
    at_top = body.pop(ENABLE_THINKING, None)  # as DashScope's clients and SiliconFlow's send it
    if at_top is not None:
        given.setdefault(ENABLE_THINKING, at_top)
    wanted = wanted_thinking(given)
    in_body = of_thinking(body.pop(THINKING, None))
    effort = body.get("reasoning_effort") or (body.get("reasoning") or {}).get("effort")
    if wanted is None:
        wanted = False if in_body is None and effort == "none" else in_body
    if wanted is not None:
        given[ENABLE_THINKING] = wanted
    if path.startswith(MESSAGES) and body.get(INCLUDE_REASONING) is not None:
        given[INCLUDE_REASONING] = body[INCLUDE_REASONING]  # a field that it would drop
    if given:
        body[KWARGS] = given
