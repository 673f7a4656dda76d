# SPDX-License-Identifier: Apache-2.0
"""Tell media apart by their content, never by a name (`uuid`) that a caller gives them.

vLLM 0.23.0 takes the name for the content: whoever sends another picture under a known name, or no
picture at all, is answered with the picture that some other client sent under it, and a
`cache_salt` does not help. And `/inference/v1/generate` takes processed media under any hash.

Here a name is no part of a chat: with its medium it changes nothing, and without it is refused. A
program that calls `LLM.generate` may still leave out a medium (None) that it has given before under
the same of its `multi_modal_uuids`, and gets what it gave last. Media that a client processed are
refused unless the server trusts clients with embeddings (`--enable-mm-embeds`), and are then named
by their content too. Ends when vLLM binds names to what was sent under them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cachetools import LRUCache
from vllm.exceptions import VLLMValidationError

from vllm_glm41v_npu.family import is_ours
from vllm_glm41v_npu.patches import wrap

MEDIA = (
    "image_url",
    "image_pil",
    "image_embeds",
    "video_url",
    "audio_url",
    "audio_embeds",
    "input_audio",
)
REMEMBERED = 1 << 16
"""Names in one process; the oldest are forgotten first."""

_given: LRUCache[tuple[str, ...], str] = LRUCache(REMEMBERED)
"""The hash of what was given last under a name."""


class _Name(str):
    """A caller's, told from those that vLLM makes up where it caches nothing."""


def apply() -> None:
    """Bind names to contents in chats, in prompts of `LLM.generate`, and in processed media."""
    from vllm.entrypoints import chat_utils
    from vllm.entrypoints.serve.disagg import mm_serde
    from vllm.multimodal.processing.inputs import ProcessorInputs
    from vllm.renderers.base import BaseRenderer
    from vllm.v1.engine.input_processor import InputProcessor

    wrap(chat_utils, "_parse_chat_message_content_part", _without_names)
    wrap(BaseRenderer, "_process_mm_uuids", _marking_names)
    wrap(ProcessorInputs, "get_mm_hashes", _hashing_contents)
    wrap(mm_serde, "decode_mm_kwargs_item", _marking_processed)
    wrap(InputProcessor, "process_inputs", _checking_processed)


def _without_names(known: Any) -> Any:
    def _parse_chat_message_content_part(part: Any, parser: Any, **options: Any) -> Any:
        is_named = isinstance(part, Mapping) and part.get("uuid") is not None
        if is_named and is_ours(parser.model_config):
            part = _part_without_name(part)
        return known(part, parser, **options)

    return _parse_chat_message_content_part


def _part_without_name(part: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a message without its name.

    Raises:
        VLLMValidationError: it has nothing else.
    """
    kinds = [kind for kind in MEDIA if kind in part]
    for kind in kinds or [kind for kind in (*MEDIA, "input_image") if kind == part.get("type")]:
        given = part.get(kind)
        if not (given.get("url", given) if isinstance(given, Mapping) else given):
            raise VLLMValidationError(
                f"A part of the message has a uuid and an empty {kind}. The server gives nobody "
                "what another request has sent, so a uuid does not stand for a picture or video: "
                "send the picture or video itself. Seen before, it is not processed again."
            )
    return {key: value for key, value in part.items() if key != "uuid"}


def _marking_names(known: Any) -> Any:
    def _process_mm_uuids(renderer: Any, data: Any, items: Any, names: Any, request: str) -> Any:
        if not is_ours(renderer.model_config):
            return known(renderer, data, items, names, request)
        marked = {
            modality: [None if name is None else _Name(name) for name in group]
            for modality, group in names.items()
        }
        return known(renderer, data, items, marked, request)

    return _process_mm_uuids


def _hashing_contents(known: Any) -> Any:
    def get_mm_hashes(inputs: Any, model_id: str) -> dict[str, list[str]]:
        names = inputs.mm_uuid_items or {}
        if not any(isinstance(name, _Name) for group in names.values() for name in group):
            return known(inputs, model_id)
        options = inputs.hf_processor_mm_kwargs
        return {
            modality: _hashes(model_id, modality, items, names.get(modality), options)
            for modality, items in inputs.mm_data_items.items()
        }

    return get_mm_hashes


def _hashes(
    model_id: str,
    modality: str,
    items: Any,
    names: Sequence[str | None] | None,
    options: Mapping[str, object],
) -> list[str]:
    """The hash of each item's content, under its name that of the last content with this name.

    Raises:
        VLLMValidationError: nothing was given under the name.
    """
    from vllm.multimodal.hasher import MultiModalHasher

    options_hash = MultiModalHasher.hash_kwargs(**options)
    contents = list(items.get_all_items_for_hash())
    hashes = []
    for content, name in zip(contents, names or [None] * len(contents), strict=True):
        key = (model_id, modality, options_hash, name or "")
        if content is not None:
            _given[key] = MultiModalHasher.hash_kwargs(
                model_id=model_id, **{modality: content}, **options
            )
        elif key not in _given:
            raise VLLMValidationError(
                f"No {modality} was given under the name {name!r} (multi_modal_uuids) with these "
                "options before: give it instead of None."
            )
        hashes.append(_given[key])
    return hashes


def _marking_processed(known: Any) -> Any:
    def decode_mm_kwargs_item(data: str) -> Any:
        item = known(data)
        item.processed_by_client = True
        return item

    return decode_mm_kwargs_item


def _checking_processed(known: Any) -> Any:
    def process_inputs(processor: Any, *arguments: Any, **options: Any) -> Any:
        request = known(processor, *arguments, **options)
        if not is_ours(processor.model_config):
            return request
        settings = processor.model_config.multimodal_config
        for feature in request.mm_features or []:
            _check_processed(feature, settings.enable_mm_embeds)
        return request

    return process_inputs


def _check_processed(feature: Any, trusts_clients: bool) -> None:
    """Name by its content what a client processed.

    Raises:
        VLLMValidationError: there is a hash alone, or the server does not trust its clients.
    """
    from vllm.multimodal.hasher import MultiModalHasher

    if feature.data is None:
        raise VLLMValidationError(
            f"The request has the hash of a medium ({feature.modality}) and not the medium. The "
            "server gives nobody what another request has sent: send the medium itself."
        )
    if not getattr(feature.data, "processed_by_client", False):
        return
    if not trusts_clients:
        raise VLLMValidationError(
            f"The request has a processed medium ({feature.modality}). Those are taken only by a "
            "server that trusts its clients, started with --enable-mm-embeds: send the picture or "
            "video itself, to /v1/chat/completions."
        )
    tensors = MultiModalHasher.hash_kwargs(processed=feature.data.get_data())
    feature.mm_hash = feature.identifier = f"processed-{tensors}"
