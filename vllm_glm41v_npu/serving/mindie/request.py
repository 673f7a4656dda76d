# SPDX-License-Identifier: Apache-2.0
"""The body of MindIE's `POST /generate`, translated into one of vLLM's OpenAI routes.

"prompt" makes it MindIE's vLLM style, "inputs" its TGI style. A list of parts becomes one user
message of a chat, and a string goes to the model as it is, without the chat template.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

from vllm_glm41v_npu.serving.asgi import CHAT, COMPLETIONS
from vllm_glm41v_npu.serving.mindie.fields import (
    INT32_MAX,
    TGI_FIELDS,
    VLLM_FIELDS,
    Field,
    Refused,
    dumps,
    named_by_vllm,
    take,
)

MAX_BODY_MB = 40
MAX_MEDIA = 20
MAX_URL = 4096
MAX_ITER_TIMES = 512
MAX_ITER_TIMES_VARIABLE = "VLLM_GLM41V_NPU_MINDIE_MAX_ITER_TIMES"
"""The environment variable for MindIE's maxIterTimes, the most tokens of an answer."""

TGI_NEW_TOKENS = 20

PICTURE, VIDEO = "image_url", "video_url"
MEDIA = (PICTURE, VIDEO, "audio_url")

NEITHER_STYLE = {
    "Error": "`inputs` or `prompt` must be necessary and data type must be string. Additionally, "
    "the request body must be valid json",
    "error_type": "validation",
}


class Translation(NamedTuple):
    """A request in vLLM's words.

    path, body: of the route of vLLM's.
    style: the form of the answer, "vllm" or "tgi".
    text: the prompt without media, which the vLLM style repeats before the answer.
    details, prompt_tokens: the TGI style's answer has its details, and the prompt's token ids.
    """

    path: str
    body: dict[str, Any]
    style: str
    text: str
    details: bool = False
    prompt_tokens: bool = False


def translate(
    data: bytes, max_iter_times: int = MAX_ITER_TIMES, tgi_stream: bool = False
) -> Translation:
    """Return the request to vLLM for a body of `/generate`.

    With `tgi_stream` it is one of `/generate_stream`.

    Raises Refused as MindIE refuses.
    """
    body = _parse(data)
    if not tgi_stream and body.get("prompt") is not None:
        return _from_vllm_style(body, max_iter_times)
    if tgi_stream or body.get("inputs") is not None:
        return _from_tgi_style(body, max_iter_times, tgi_stream)
    raise Refused(dumps(NEITHER_STYLE))


def _parse(data: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    try:
        body = json.loads(data.decode(), parse_constant=refuse)
        if b"\\u" in data:
            dumps(body).encode()  # refuses half a character
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Refused(dumps(NEITHER_STYLE))
    return body


def _from_vllm_style(body: dict[str, Any], max_iter_times: int) -> Translation:
    prompt = body["prompt"]
    if prompt == []:
        raise Refused("Prompt arr is empty")
    if not isinstance(prompt, str | list):
        raise Refused("The type of prompt is abnormal")
    if prompt == "":
        raise Refused(
            f"Prompt must be necessary and data type must be string and length in (0, "
            f"{MAX_BODY_MB << 20}], but the length of inputs is 0"
        )
    path, text, asked = _prompt(prompt)
    fields = take(body, VLLM_FIELDS)
    count = _sequences(fields)
    if "stop" not in fields and "stop_token_ids" not in fields:
        fields.pop("include_stop_str_in_output", None)
    asked |= named_by_vllm(fields, VLLM_FIELDS)
    if "stop_token_ids" in asked:
        asked["stop_token_ids"] = [id for id in asked["stop_token_ids"] if 0 <= id <= INT32_MAX]
    samples = True if count > 1 else None
    if body.get("do_sample") is False:  # which MindIE reads in the TGI style alone
        samples = False
    asked |= _sampling(fields, samples)
    asked["n"] = count
    asked["max_tokens"] = min(fields.get("max_tokens", max_iter_times), max_iter_times)
    asked["stream"] = fields.get("stream", False)
    return Translation(path, asked, "vllm", text)


def _from_tgi_style(body: dict[str, Any], max_iter_times: int, stream: bool) -> Translation:
    inputs = body.get("inputs")
    if inputs is None:
        raise Refused("Request should contain 'inputs' and the type should be string.")
    if inputs == []:
        raise Refused("Inputs arr is empty")
    if not isinstance(inputs, str | list):
        raise Refused("The type of inputs is abnormal")
    if inputs == "":
        raise Refused(f"Inputs length must be in (0, {MAX_BODY_MB << 20}], but got 0")
    path, text, asked = _prompt(inputs)
    parameters = take(body, (Field("parameters", "object"),)).get("parameters", {})
    fields = take(parameters, TGI_FIELDS)
    prompt_tokens = fields.get("decoder_input_details", False)
    if stream and prompt_tokens:
        raise Refused("The decoder_input_details must not be true when stream is true.")
    if fields.get("typical_p", 1) != 1:
        raise Refused(
            f"Parameter typical_p is {fields['typical_p']}, and vLLM has no typical sampling; "
            "leave it out."
        )
    asked |= named_by_vllm(fields, TGI_FIELDS)
    asked |= _sampling(fields, samples=fields.get("do_sample"))
    asked["max_tokens"] = min(fields.get("max_new_tokens", TGI_NEW_TOKENS), max_iter_times)
    asked["stream"] = stream
    asked["return_token_ids"] = True
    if stream:
        asked["stream_options"] = {"include_usage": True}
    details = fields.get("details", False) or prompt_tokens
    return Translation(path, asked, "tgi", text, details, prompt_tokens)


def _sequences(fields: dict[str, Any]) -> int:
    """Return the number of answers that are wanted."""
    best_of, n = fields.get("best_of"), fields.get("n")
    if best_of is not None and n is not None and best_of < n:
        raise Refused(
            f"best_of should greater than or equal to n, but best_of is {best_of}, n is {n}."
        )
    count = best_of or n or 1
    if count > 1 and not fields.get("temperature"):
        raise Refused(
            "Best_of/N can not greater than 1 when temperature is 0 or not set, but best_of is "
            f"{best_of}, n is {n}."
        )
    return count


def _sampling(fields: dict[str, Any], samples: bool | None) -> dict[str, Any]:
    """Return all settings of sampling, with MindIE's defaults, not generation_config.json's."""
    if samples is None:
        samples = any(key in fields for key in ("temperature", "top_k", "top_p"))
    return {
        "temperature": fields.get("temperature", 1.0) if samples else 0.0,
        "top_p": fields.get("top_p", 1.0),
        "top_k": fields.get("top_k", -1),
        "repetition_penalty": fields.get("repetition_penalty", 1.0),
    }


def _prompt(prompt: str | list[Any]) -> tuple[str, str, dict[str, Any]]:
    """Return (vLLM's route, the prompt's text, its part of the body)."""
    if isinstance(prompt, str):
        return COMPLETIONS, prompt, {"prompt": prompt}
    _check_media(prompt)
    parts = [part for item in prompt for part in _part(item)]
    kinds = {part["type"] for part in parts}
    if {PICTURE, VIDEO} <= kinds:
        raise Refused("Image and video cannot exist in single prompt at the same time.")
    texts = (part["text"] for part in parts if part["type"] == "text")
    body = {
        "messages": [{"role": "user", "content": parts}],
        # MindIE has no reasoning parser here; this switches ours off.
        "chat_template_kwargs": {"keep_tags": "all"},
    }
    return CHAT, next(texts, ""), body


def _check_media(prompt: list[Any]) -> None:
    count = 0
    for item in prompt:
        if not isinstance(item, dict):
            raise Refused(
                f"The input type of '{type(item)}' is invalid, it should be a List[Dict]."
            )
        if not isinstance(item.get("text", ""), str):
            raise Refused("Request param text must be string")
        for key in MEDIA:
            if key in item and item[key] is None:
                raise Refused(f"Request param {key} null")
        count += any(key in item for key in MEDIA)
        if count > MAX_MEDIA:
            raise Refused(f"The number of multimodal url should be no more than {MAX_MEDIA}")


def _part(item: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a part of vLLM's chat in a list, or an empty list for an empty text."""
    kind = item.get("type")
    if kind == "text":
        return [{"type": "text", "text": item["text"]}] if item.get("text") else []
    if kind not in (PICTURE, VIDEO):
        raise Refused(f"Input type {kind} does not match the mm type.")
    medium = item.get(kind)
    url = medium.get("url") if isinstance(medium, dict) else medium
    if not isinstance(url, str):
        raise Refused(f"Input of {kind} should be str or dict.")
    return [{"type": kind, kind: {"url": media_url(kind, url)}}]


def media_url(kind: str, url: str) -> str:
    """Return a URL for vLLM; MindIE also takes a path, and a picture in base64 without a head.

    vLLM decides whether there is such a file, and whether requests may have it.

    Raises:
        Refused: It is empty, too long, or names a video and is neither a URL nor a path.
    """
    if not url:
        raise Refused(f"Input of {kind} is an empty string; give a URL, a path or base64.")
    scheme = urlsplit(url[:32]).scheme
    if scheme in ("http", "https") and len(url) > MAX_URL:
        raise Refused(f"The length of media_url should be less than {MAX_URL}, but got {len(url)}.")
    relative = scheme == "file" and not url[5:].startswith("///")
    if scheme and not relative:
        return url
    path = url.removeprefix("file:").removeprefix("//")
    if relative or _is_path(path):
        return _file_url(kind, path)
    if kind == PICTURE:
        return f"data:image/jpeg;base64,{url}"
    raise Refused(f"Input type {kind} does not match the mm type.")


def _is_path(text: str) -> bool:
    """Return True where a string without a scheme is a file's path, and no base64.

    Base64 has no dots, and of all pictures only a JPEG begins with a slash in it ("/9j/").
    """
    is_jpeg = text.startswith("/9j/")
    return len(text) <= MAX_URL and ("." in text or (text.startswith("/") and not is_jpeg))


def _file_url(kind: str, path: str) -> str:
    try:
        return Path(path).absolute().as_uri()
    except ValueError as error:  # half a character, which no file system has
        raise Refused(f"Input of {kind} is a path that no file can have.") from error
