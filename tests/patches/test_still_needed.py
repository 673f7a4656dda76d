# SPDX-License-Identifier: Apache-2.0
"""What vLLM does without our patches of engines: each test that fails lets one of them go."""

from __future__ import annotations

import inspect
import multiprocessing
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PretrainedConfig
from vllm import plugins
from vllm.config import SchedulerConfig
from vllm.config import model as model_config
from vllm.multimodal.cache import MultiModalProcessorSenderCache, MultiModalReceiverCache
from vllm.utils import cpu_triton_utils, torch_utils
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.structured_output import StructuredOutputManager

from vllm_glm41v_npu.patches import (
    engine_watch,
    pinned_memory,
    sampler_argument,
    thinking_drafts,
)

ARGUMENT = "USE_FP64_GUMBEL"
END = 9
"""The token that ends the thinking."""


def test_auto_dtype() -> None:
    """Guards patches/auto_dtype.py: vLLM asks nobody, and takes the checkpoint's dtype."""
    verify = inspect.unwrap(model_config._get_and_verify_dtype)
    config = PretrainedConfig(dtype=torch.bfloat16)
    config.model_type = "glm4v"
    assert verify("", config, "auto", is_pooling_model=False) == torch.bfloat16


def test_front_end() -> None:
    """Guards patches/front_end.py: no group of plugins is for front ends alone."""
    groups = {value for name, value in vars(plugins).items() if name.endswith("_PLUGINS_GROUP")}
    assert {name.removeprefix("vllm.") for name in groups} == {
        "general_plugins",
        "io_processor_plugins",
        "platform_plugins",
        "stat_logger_plugins",
    }


def test_engine_watch() -> None:
    """Guards patches/engine_watch.py: vLLM's engine core does not look at its parent."""
    assert "parent_process" not in inspect.getsource(sys.modules[EngineCoreProc.__module__])


def test_engine_watch_is_in_engines_alone_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a watch in each process, and two in an engine."""
    ended = threading.Event()
    killed: list[int] = []
    parent = SimpleNamespace(join=ended.wait)
    this = SimpleNamespace(name="APIServer_0")
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    monkeypatch.setattr(multiprocessing, "current_process", lambda: this)
    monkeypatch.setattr(engine_watch.os, "kill", lambda process, signal: killed.append(process))

    def watches() -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each.name == engine_watch._NAME]

    engine_watch.apply()
    assert watches() == []
    this.name = "EngineCore_DP0"
    engine_watch.apply()
    engine_watch.apply()
    (watch,) = watches()
    ended.set()
    watch.join(5)
    assert len(killed) == 1


def test_media_cache() -> None:
    """Guards patches/media_cache: a medium counts as sent although its request was refused."""
    config: Any = SimpleNamespace(
        get_multimodal_config=lambda: SimpleNamespace(mm_processor_cache_gb=1)
    )
    sender, receiver = MultiModalProcessorSenderCache(config), MultiModalReceiverCache(config)
    item: Any = {"pixels": torch.zeros(1)}
    sender.get_and_update_item((item, []), "picture")  # and its request is refused afterwards
    data, _ = sender.get_and_update_item(None, "picture")
    assert data is None
    with pytest.raises(AssertionError, match="picture"):
        receiver.get_and_update_item(data, "picture")


def test_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards patches/pinned_memory.py: vLLM pins where no driver is, whatever the platform."""
    assert torch_utils.PIN_MEMORY
    assert "pin_memory: bool = PIN_MEMORY" in inspect.getsource(torch_utils)

    def move(pin_memory: bool = torch_utils.PIN_MEMORY) -> bool:
        return pin_memory

    monkeypatch.setattr(torch_utils, "async_tensor_h2d", move)
    pinned_memory.apply()
    assert not move()


def test_sampler_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards patches/sampler_argument.py: vLLM's CPU kernel refuses what its sampler passes."""
    kernel = cpu_triton_utils.sample_recovered_tokens_kernel
    assert ARGUMENT not in inspect.signature(inspect.unwrap(kernel.func)).parameters
    seen: list[Any] = []

    def implementation(*arguments: Any, NO_DRAFT_PROBS: bool = False) -> None:
        seen.append((arguments, NO_DRAFT_PROBS))

    monkeypatch.setattr(kernel, "func", implementation)
    sampler_argument.apply()
    kernel[(1,)](1, NO_DRAFT_PROBS=True, USE_FP64_GUMBEL=False)
    assert seen == [((1,), True)]


class Parser:
    """A reasoning parser that knows the token END."""

    def is_reasoning_end(self, tokens: Any) -> bool:
        return END in tokens

    def is_reasoning_end_streaming(self, tokens: Any, delta: Any) -> bool:
        return END in delta


def _manager() -> Any:
    manager: Any = object.__new__(StructuredOutputManager)
    vars(manager).update(enable_in_reasoning=False, _get_reasoner=lambda request: Parser())
    return manager


def _request() -> Any:
    grammar = SimpleNamespace(validate_tokens=lambda tokens: pytest.fail("a grammar was asked"))
    output = SimpleNamespace(reasoning_ended=False, grammar=grammar)
    return SimpleNamespace(
        structured_output_request=output,
        use_structured_output=True,
        all_token_ids=[1, 2],
        prompt_token_ids=[1],
        num_computed_tokens=2,
        num_output_placeholders=0,
        is_finished=lambda: False,
        is_prefill_chunk=False,
        spec_token_ids=[],
    )


@pytest.mark.parametrize(
    ("drafts", "kept"), [([3, 4], [3, 4]), ([3, END, 5], [3]), ([END], []), ([], [])]
)
def test_thinking_drafts(drafts: list[int], kept: list[int]) -> None:
    """Guards patches/thinking_drafts.py: vLLM keeps draft tokens behind the end of the thinking."""
    own = inspect.unwrap(SchedulerConfig.get_scheduler_cls)(
        SchedulerConfig.default_factory(max_model_len=8, is_encoder_decoder=False)
    )
    patched = thinking_drafts._drafting_within_thinking(own)
    for scheduler_class, expected in ((own, drafts), (patched, kept)):
        request = _request()
        scheduler: Any = object.__new__(scheduler_class)
        ours = SimpleNamespace(hf_config=SimpleNamespace(model_type="glm4v"))
        scheduler.vllm_config = SimpleNamespace(model_config=ours)
        scheduler.requests = {"a": request}
        scheduler.structured_output_manager = _manager()
        given = SimpleNamespace(req_ids=["a"], draft_token_ids=[[*drafts]])
        scheduler.update_draft_token_ids(given)
        assert request.spec_token_ids == expected
