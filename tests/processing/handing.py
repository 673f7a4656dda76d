# SPDX-License-Identifier: Apache-2.0
"""A front end's cache and an engine's, with the wire between them, and no network behind."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from vllm.config import ModelConfig, ParallelConfig
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.cache import MultiModalCache
from vllm.multimodal.inputs import MultiModalFeatureSpec, MultiModalKwargsItem
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core_client import InprocClient
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from vllm_glm41v_npu.patches import media_cache


class Ends(InprocClient):
    """vLLM's client of an engine: what it sends is encoded, decoded, and filled in.

    `front` and `engine` are the caches that vLLM makes for this size, type and number of servers.
    """

    def __init__(
        self, config: ModelConfig, capacity: int, kind: str = "lru", servers: int = 1
    ) -> None:
        media_cache.apply()
        config = copy.copy(config)
        config.multimodal_config = replace(
            config.multimodal_config,
            mm_processor_cache_gb=capacity / (1 << 30),
            mm_processor_cache_type=kind,
        )
        parallel = ParallelConfig(_api_process_count=servers, _api_process_rank=0)
        settings: Any = SimpleNamespace(model_config=config, parallel_config=parallel)
        self.vllm_config = settings
        self.front: Any = MULTIMODAL_REGISTRY.processor_cache_from_config(settings)
        self.engine: Any = MULTIMODAL_REGISTRY.engine_receiver_cache_from_config(settings)
        self.engine_core: Any = self
        self.sent_tensors = 0
        self.arrived: list[MultiModalKwargsItem] = []

    def send(self, inputs: dict[str, Any], copies: int = 1) -> list[MultiModalKwargsItem]:
        """The media as the engine has them in the last copy of a request (n > 1)."""
        request = request_of(inputs)
        for _ in range(copies):
            InprocClient.add_request(self, copy.copy(request))
        return self.arrived

    def preprocess_add_request(self, request: EngineCoreRequest) -> tuple[Any, int]:
        frames = MsgpackEncoder().encode(request)
        received = MsgpackDecoder(EngineCoreRequest).decode(frames)
        features = received.mm_features
        self.sent_tensors += sum("pixel_values" in feature.data for feature in features)
        if self.engine is not None:
            features = self.engine.get_and_update_features(features)
        self.arrived = [feature.data for feature in features]
        return received, 0

    def add_request(self, request: Any, wave: int = 0) -> None:
        """Take the place of the engine's scheduler, which needs nothing more here."""

    def held_bytes(self) -> int:
        """Bytes of the tensors that the engine keeps."""
        return sum(map(MultiModalCache.get_item_size, self.engine._items.values()))


def request_of(inputs: dict[str, Any]) -> EngineCoreRequest:
    """The request that vLLM's front end makes of what a processor returns."""
    parts = zip(
        inputs["mm_kwargs"]["image"],
        inputs["mm_hashes"]["image"],
        inputs["mm_placeholders"]["image"],
        strict=True,
    )
    features = [MultiModalFeatureSpec(data, "image", name, at, name) for data, name, at in parts]
    return EngineCoreRequest(
        request_id="0",
        prompt_token_ids=inputs["prompt_token_ids"],
        mm_features=features,
        sampling_params=SamplingParams(),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
