# SPDX-License-Identifier: Apache-2.0
"""Parts of a message (pictures, videos, texts) in the forms of clients, put into a route's form.

Clients write a picture as `{"type": "image_url", "image_url": {"url": ...}}` or with a plain
string, as `{"type": "image", "image": ...}` like transformers, as `input_image` like OpenAI's
responses, or with a `source` like Anthropic's messages. Each route of vLLM takes one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from reprlib import Repr
from typing import Any

from PIL.Image import Image
from vllm.exceptions import VLLMValidationError

TEXTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
"""Type of a part with text to the key of its text."""

MEDIA = {
    "image_url": "image",
    "image": "image",
    "input_image": "image",
    "video_url": "video",
    "video": "video",
    "input_video": "video",
}
OTHERS = {"image_embeds", "image_pil", "prompt_embeds", "tool_reference"}

Part = dict[str, Any]
Form = Callable[[str, Any, str], Part]
"""(path of the part for a message, the part, the sender's role) to the part in a route's form."""


_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist = 2, 3, 3
_SHORT.maxstring = _SHORT.maxother = 60


def shown(value: Any) -> str:
    """Return a value shortened for a sentence, however long or deep it is."""
    text = _SHORT.repr(value)
    return text if len(text) <= 90 else f"{text[:70]}..."


def refuse(sentence: str) -> VLLMValidationError:
    """Return the refusal that vLLM answers with 400, without a traceback."""
    return VLLMValidationError(sentence)


def for_chat(path: str, part: Any, role: str = "user") -> Part:
    """Return a part in the form of /v1/chat/completions, /tokenize and all that render a chat.

    Raises VLLMValidationError about a part without text, picture or video.
    """
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = _kind(path, part)
    if kind in TEXTS:
        return {**part, "type": kind, TEXTS[kind]: _text(path, part, TEXTS[kind])}
    if kind == "image" and isinstance(part.get("image"), Image):  # offline
        return {"type": "image_pil", "image_pil": part["image"]}
    if kind in OTHERS:
        return _checked(path, part, kind)
    medium = _medium(path, kind)
    if _is_known_by_uuid(part, medium):
        return part
    kept = {key: part[key] for key in ("uuid",) if key in part}
    return {"type": f"{medium}_url", f"{medium}_url": {"url": _url(path, part, medium)}, **kept}


def for_responses(path: str, part: Any, role: str = "user") -> Part:
    """Return a part in the form of /v1/responses, which takes no videos."""
    texts = "output_text" if role == "assistant" else "input_text"
    if isinstance(part, str):
        return {"type": texts, "text": part}
    kind = _kind(path, part)
    if kind in TEXTS:
        own = {"text": texts, "input_text": texts}.get(kind, kind)
        return {**part, "type": own, TEXTS[kind]: _text(path, part, TEXTS[kind])}
    _refuse_video(path, kind, "/v1/responses")
    detail = part.get("detail") or "auto"
    return {"type": "input_image", "image_url": _url(path, part, "image"), "detail": detail}


def for_messages(path: str, part: Any, role: str = "user") -> Part:
    """Return a part in the form of Anthropic's /v1/messages, which takes no videos."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = _kind(path, part)
    if kind in ("tool_use", "tool_result", "tool_reference", "thinking", "redacted_thinking"):
        return part
    if kind in TEXTS:
        return {**part, "type": "text", "text": _text(path, part, TEXTS[kind])}
    _refuse_video(path, kind, "/v1/messages")
    return {"type": "image", "source": {"type": "url", "url": _url(path, part, "image")}}


def _kind(path: str, part: Any) -> str:
    """Return the type of a part, which it says or its keys tell."""
    if not isinstance(part, Mapping):
        raise refuse(f"{path} is {shown(part)}; expected an object with a type, or text.")
    kind = part.get("type")
    if kind is None:
        named = [*MEDIA, *TEXTS, *OTHERS]
        kind = next((name for name in named if part.get(name) is not None), None)
        if kind is None:
            raise refuse(f'{path} has no type; expected one, such as "text" or "image_url".')
    if not isinstance(kind, str):
        raise refuse(f'{path}.type is {shown(kind)}; expected text, such as "image_url".')
    return kind


def _medium(path: str, kind: str) -> str:
    if kind not in MEDIA:
        raise refuse(
            f"{path} is of type {kind!r}, and this model takes text, pictures and videos; "
            'expected "text", "image_url" or "video_url".'
        )
    return MEDIA[kind]


def _refuse_video(path: str, kind: str, route: str) -> None:
    if _medium(path, kind) == "video":
        raise refuse(f"{path} is a video, and {route} takes none; send it to /v1/chat/completions.")


def _checked(path: str, part: Part, kind: str) -> Part:
    value = part.get(kind)
    if kind == "image_pil" and not isinstance(value, Image | None):
        raise refuse(f'{path} is of type "image_pil", for pictures in Python; send "image_url".')
    if kind == "image_embeds" and value is not None:
        _check_embeddings(f"{path}.{kind}", value)
    return part


def _check_embeddings(path: str, value: Any) -> None:
    tensors = value if isinstance(value, Mapping) else {}
    has_both = tensors.keys() == {"image_embeds", "image_grid_thw"}
    if has_both and all(isinstance(tensor, str) for tensor in tensors.values()):
        return
    raise refuse(
        f"{path} is {shown(value)}; expected an object with image_embeds and image_grid_thw, each "
        "a tensor that torch.save wrote, in base64."
    )


def _is_known_by_uuid(part: Mapping[str, Any], medium: str) -> bool:
    """Return True where a part names a medium that was sent before, and brings none."""
    return part.get("uuid") is not None and part.get(f"{medium}_url") is None


def _text(path: str, part: Mapping[str, Any], key: str) -> str:
    text = part.get(key)
    if not isinstance(text, str):
        found = f"is {shown(text)}" if key in part else "is missing"
        raise refuse(f"{path}.{key} {found}; expected text.")
    return text


def _url(path: str, part: Mapping[str, Any], medium: str) -> str:
    """Return the URL of a part's medium, whatever key it is under."""
    keys = (f"{medium}_url", medium, "url", "source")
    key = next((key for key in keys if part.get(key) is not None), None)
    if key is None:
        raise refuse(
            f"{path} is of type {part.get('type')!r} and brings no {medium}; expected "
            f'{{"type": "{medium}_url", "{medium}_url": {{"url": "https://... or data:..."}}}}.'
        )
    value = part[key]
    if key == "source" and isinstance(value, Mapping) and value.get("type", "base64") == "base64":
        data, kind = value.get("data"), value.get("media_type", "image/jpeg")
        if not isinstance(data, str) or not isinstance(kind, str):
            raise refuse(f"{path}.source has no data; expected base64 and its media_type.")
        return f"data:{kind};base64,{data}"
    url = value.get("url") if isinstance(value, Mapping) else value
    if not isinstance(url, str):
        raise refuse(
            f'{path}.{key} is {shown(value)}; expected a URL, as text or as {{"url": "..."}}.'
        )
    return url
