# SPDX-License-Identifier: Apache-2.0
"""Let the front end's cache of media and the engine's agree, whatever becomes of a request.

vLLM 0.23.0 has two caches that evict alike as long as both see the same media in the same order.
The front end's takes a medium when it is processed, the engine's when a request arrives: a request
that is refused, cancelled or overtaken in between leaves them different for good. Every request
with that picture then fails, and an eviction of a key that was only touched never ends.

Here the front end's cache alone decides (`sender`). It takes a medium when its request is handed to
the engine, which keeps (`receiver`) what it is told to (`orders`), under numbers that are never
used twice. Should it miss one all the same, that request fails, and the medium is sent again with
the next. This serves both types of cache, "lru" and "shm": vLLM's shared memory counts readers, and
each refused or aborted request leaves a count that never comes down.

Ends when vLLM's caches survive a request that is refused after its processing, and touching what
is not there.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from functools import partial
from typing import Any

from vllm_glm41v_npu.family import is_ours
from vllm_glm41v_npu.patches import wrap

KEPT_BY_ENGINE = ("lru", "shm")
MISSING = "missing media:"
"""Start of the reason with which the engine ends a request whose media it does not have."""


def apply() -> None:
    """Put the caches into the places where vLLM asks for its own."""
    from vllm.multimodal.registry import MultiModalRegistry

    for name, ours in (
        ("processor_cache_from_config", _processor_cache),
        ("processor_only_cache_from_config", _local_cache),
        ("engine_receiver_cache_from_config", _engine_cache),
        ("worker_receiver_cache_from_config", _worker_cache),
    ):
        wrap(MultiModalRegistry, name, partial(_for_this_model, ours))


def _for_this_model(ours: Any, known: Any) -> Any:
    def cache_from_config(registry: Any, vllm_config: Any, *arguments: Any) -> Any:
        make = ours if is_ours(vllm_config.model_config) else known
        return make(registry, vllm_config, *arguments)

    return cache_from_config


def _processor_cache(registry: Any, vllm_config: Any) -> Any:
    if registry._get_cache_type(vllm_config) not in KEPT_BY_ENGINE:
        return _local_cache(registry, vllm_config)
    from vllm_glm41v_npu.patches.media_cache.sender import SenderCache

    _keep_promises()
    _hand_over_in_clients()
    return SenderCache(_capacity(vllm_config))


def _local_cache(registry: Any, vllm_config: Any) -> Any:
    from vllm_glm41v_npu.patches.media_cache.local import LocalCache

    if registry._get_cache_type(vllm_config) is None:
        return None
    _keep_promises()
    return LocalCache(_capacity(vllm_config))


def _engine_cache(registry: Any, vllm_config: Any) -> Any:
    from vllm_glm41v_npu.patches.media_cache.receiver import ReceiverCache

    if registry._get_cache_type(vllm_config) not in KEPT_BY_ENGINE:
        return None
    _tell_what_is_missing()
    return ReceiverCache()


def _worker_cache(registry: Any, vllm_config: Any, shared_worker_lock: Any) -> None:
    return None


def _capacity(vllm_config: Any) -> float:
    """Return the bytes that the cache may hold."""
    return vllm_config.model_config.get_multimodal_config().mm_processor_cache_gb * (1 << 30)


def _keep_promises() -> None:
    from vllm.multimodal.processing import BaseMultiModalProcessor

    wrap(BaseMultiModalProcessor, "_cached_apply_hf_processor", _keeping_promises)


def _keeping_promises(known: Any) -> Any:
    from vllm_glm41v_npu.patches.media_cache.promises import promises

    def _cached_apply_hf_processor(processor: Any, *arguments: Any) -> Any:
        with promises():
            return known(processor, *arguments)

    return _cached_apply_hf_processor


def _hand_over_in_clients() -> None:
    """Decide what is sent in the calls that send a request to the engine, at the last moment."""
    from vllm.v1.engine import core_client
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.engine.output_processor import OutputProcessor

    for client in (core_client.InprocClient, core_client.SyncMPClient):
        wrap(client, "add_request", _handing_over)
    for client in (core_client.AsyncMPClient, core_client.DPAsyncMPClient):
        wrap(client, "add_request_async", _handing_over_async)
    wrap(OutputProcessor, "process_outputs", _hearing_what_is_missing)
    wrap(LLMEngine, "add_request", _forgetting_failed)


def _handing_over(known: Any) -> Any:
    from vllm_glm41v_npu.patches.media_cache.sender import handing_over

    def add_request(client: Any, request: Any) -> None:
        with handing_over(request) if _serves_this_model(client) else nullcontext():
            known(client, request)

    return add_request


def _handing_over_async(known: Any) -> Any:
    from vllm_glm41v_npu.patches.media_cache.sender import handing_over

    async def add_request_async(client: Any, request: Any) -> None:
        with handing_over(request) if _serves_this_model(client) else nullcontext():
            await known(client, request)

    return add_request_async


def _serves_this_model(client: Any) -> bool:
    """Return whether the engine behind `client`, in this process or another, is of GLM-4.1V."""
    owner = client if hasattr(client, "vllm_config") else client.engine_core
    return is_ours(owner.vllm_config.model_config)


def _forgetting_failed(known: Any) -> Any:
    """Forget a request that an engine in this process refused; vLLM would wait for it for ever."""

    def add_request(engine: Any, request_id: str, *arguments: Any, **options: Any) -> str:
        try:
            return known(engine, request_id, *arguments, **options)
        except BaseException:
            engine.abort_request([request_id])
            raise

    return add_request


def _hearing_what_is_missing(known: Any) -> Any:
    from vllm_glm41v_npu.patches.media_cache.sender import recall_everywhere

    def process_outputs(processor: Any, outputs: Any, *arguments: Any, **options: Any) -> Any:
        for output in outputs:
            reason = output.stop_reason
            if isinstance(reason, str) and reason.startswith(MISSING) and output.finish_reason:
                recall_everywhere(map(int, reason.removeprefix(MISSING).split()))
        return known(processor, outputs, *arguments, **options)

    return process_outputs


def _tell_what_is_missing() -> None:
    """Let the engine's process say which media a failed request lacked."""
    from vllm.v1.engine.core import EngineCoreProc

    wrap(EngineCoreProc, "_handle_request_preproc_error", _telling_what_is_missing)


def _telling_what_is_missing(known: Any) -> Any:
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

    from vllm_glm41v_npu.patches.media_cache.receiver import MissingMedia

    def _handle_request_preproc_error(core: Any, request: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, MissingMedia):
            known(core, request)
            return
        reason = " ".join([MISSING, *map(str, error.numbers)])
        output = EngineCoreOutput(
            request.request_id, [], finish_reason=FinishReason.ERROR, stop_reason=reason
        )
        outputs = EngineCoreOutputs(outputs=[output], finished_requests={request.request_id})
        core.output_queue.put_nowait((request.client_index, outputs))

    return _handle_request_preproc_error
