# SPDX-License-Identifier: Apache-2.0
"""Where the plugin is installed, models of others are served as vLLM serves them.

The patches hold for a process, which may have another model than ours, or both one after the other.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.cache import (
    MultiModalProcessorOnlyCache,
    MultiModalProcessorSenderCache,
    MultiModalReceiverCache,
)
from vllm.multimodal.registry import MultiModalRegistry
from vllm.renderers.base import BaseRenderer

from vllm_glm41v_npu.family import is_our_config, is_ours
from vllm_glm41v_npu.patches import (
    beam_search,
    chat_parts,
    closed_thinking,
    empty_media,
    media_cache,
    media_names,
    thinking_drafts,
)

MEDIA = SimpleNamespace(mm_processor_cache_gb=1, enable_mm_embeds=False)
QWEN: Any = SimpleNamespace(
    hf_config=SimpleNamespace(model_type="qwen2_5_vl"),
    multimodal_config=MEDIA,
    get_multimodal_config=lambda: MEDIA,
)
OWNER = SimpleNamespace(model_config=QWEN)
"""A part of vLLM's that knows its model."""


def test_whose_a_model_is() -> None:
    """Guards the question that all patches ask."""
    assert is_ours(SimpleNamespace(hf_config=SimpleNamespace(model_type="glm4v")))
    assert not is_ours(QWEN)
    assert not is_ours(None)
    assert is_our_config(SimpleNamespace(model_type="glm4v_text"))
    assert not is_our_config(QWEN.hf_config)


def test_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards shared memory, and models with a processing of their own, which keeps no promises."""
    media_cache.apply()
    config: Any = OWNER
    kinds = {
        "processor_cache_from_config": MultiModalProcessorSenderCache,
        "processor_only_cache_from_config": MultiModalProcessorOnlyCache,
        "engine_receiver_cache_from_config": MultiModalReceiverCache,
    }
    monkeypatch.setattr(MultiModalRegistry, "_get_cache_type", lambda *_: "lru")
    for name, kind in kinds.items():
        assert type(getattr(MULTIMODAL_REGISTRY, name)(config)) is kind


def test_requests_to_its_engine() -> None:
    """A medium that its engine has is sent by its hash, which of ours would be refused."""
    sent: list[Any] = []
    add = media_cache._handing_over(lambda client, request: sent.append(request.mm_features))
    features = [SimpleNamespace(data=None, modality="image", mm_hash="a")]
    request = SimpleNamespace(mm_features=features)
    engine = SimpleNamespace(vllm_config=OWNER)
    for client in (engine, SimpleNamespace(engine_core=engine)):
        add(client, request)
    assert sent == [features, features]
    checked = media_names._checking_processed(lambda processor: request)
    assert checked(OWNER) is request


def test_names_of_media() -> None:
    """Its clients send a picture by its uuid alone."""
    part = {"type": "image_url", "image_url": None, "uuid": "mine"}
    parse = media_names._without_names(lambda part, parser: part)
    assert parse(part, OWNER) is part
    mark = media_names._marking_names(lambda renderer, data, items, names, request: names)
    names = {"image": ["mine"]}
    assert mark(OWNER, {}, {}, names, "0") is names


def test_empty_media(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its refusals are vLLM's."""
    seen: list[Any] = []
    monkeypatch.setattr(BaseRenderer, "_validate_mm_uuids", lambda *given: seen.append(given))
    empty_media.apply()
    validate: Any = BaseRenderer._validate_mm_uuids
    validate(OWNER, {}, {"image": [None]}, {})
    assert len(seen) == 1


def test_chats() -> None:
    """Its parts have types that ours does not know, and its template a switch for thinking."""
    messages = [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]
    parse = chat_parts._in_form(lambda messages, model_config: messages)
    assert parse(messages, QWEN) is messages
    render = closed_thinking._closing(lambda config, tokenizer, chat, **options: "prompt")
    assert render(QWEN, None, [], enable_thinking=False) == "prompt"


def test_beam_search() -> None:
    """Its beams are vLLM's."""
    search = beam_search._searching(lambda handler: "ours", lambda handler: "vLLM's")
    assert search(OWNER) == "vLLM's"


def test_draft_tokens() -> None:
    """Its draft tokens may go on behind the thinking."""

    class Scheduler:
        vllm_config = OWNER

        def update_draft_token_ids(self, drafts: Any) -> None:
            self.taken = drafts

    scheduler = thinking_drafts._drafting_within_thinking(Scheduler)()
    scheduler.update_draft_token_ids("drafts")
    assert scheduler.taken == "drafts"
