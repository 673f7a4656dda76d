# SPDX-License-Identifier: Apache-2.0
"""The marks around pictures and videos: their names in config.json, texts and published ids.

Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_glm41v_npu.checkpoint.folder import Checkpoint


@dataclass(frozen=True)
class Mark:
    """One mark: its text in the tokenizer, and its id in the published checkpoint."""

    text: str
    published: int


MARKS = {
    "image_token_id": Mark("<|image|>", 151343),
    "video_token_id": Mark("<|video|>", 151344),
    "image_start_token_id": Mark("<|begin_of_image|>", 151339),
    "image_end_token_id": Mark("<|end_of_image|>", 151340),
    "video_start_token_id": Mark("<|begin_of_video|>", 151341),
    "video_end_token_id": Mark("<|end_of_video|>", 151342),
}
"""Key of config.json, which older files leave out, to mark."""


def first(key: str, *parts: Mapping[str, Any], default: Any = None) -> Any:
    """Return the value of `key` in the first part that has one."""
    return next((part[key] for part in parts if part.get(key) is not None), default)


def mark_ids(config: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, int]:
    """Return the ids of the marks.

    They stand at config.json's top level, or, by some converters, in its text settings alone;
    where they are left out, they are the published ones.
    """
    return {key: first(key, config, text, default=mark.published) for key, mark in MARKS.items()}


def ids_of_tokenizer(tokenizer: Checkpoint) -> dict[str, int] | None:
    """Return text to id of a folder's tokenizer.json; None where it cannot be read."""
    content = tokenizer.read_json("tokenizer.json")
    if content is None:
        return None
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    known = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    added = content.get("added_tokens") or []
    return known | {token["content"]: token["id"] for token in added}
