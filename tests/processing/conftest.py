# SPDX-License-Identifier: Apache-2.0
"""A processor over a tiny checkpoint directory without weights, and transformers' one beside it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from transformers import AutoProcessor, Glm4vProcessor  # noqa: E402
from vllm.config import ModelConfig  # noqa: E402
from vllm.multimodal.cache import BaseMultiModalProcessorCache  # noqa: E402
from vllm.multimodal.processing import InputProcessingContext  # noqa: E402
from vllm.tokenizers import cached_tokenizer_from_config  # noqa: E402

from tests.processing.web import serve  # noqa: E402
from vllm_glm41v_npu.processing.info import Glm41vDummyInputsBuilder, Glm41vProcessingInfo
from vllm_glm41v_npu.processing.multimodal import Glm41vMultiModalProcessor  # noqa: E402

CHECKPOINT = Path(__file__).parents[1] / "data" / "config_nested_rope_scaling"

MakeProcessor = Callable[..., Glm41vMultiModalProcessor]


@pytest.fixture(scope="session")
def model_config() -> ModelConfig:
    return ModelConfig(str(CHECKPOINT), dtype="float32", max_model_len=8192, enforce_eager=True)


@pytest.fixture(scope="session")
def make_processor(model_config: ModelConfig) -> MakeProcessor:
    """make_processor(cache=None, model=None, **fields of vLLM's multimodal config)"""

    def make(
        cache: BaseMultiModalProcessorCache | None = None,
        model: Path | None = None,
        **multimodal: object,
    ) -> Glm41vMultiModalProcessor:
        config = copy.copy(model_config)
        config.multimodal_config = replace(model_config.multimodal_config, **multimodal)
        tokenizer = cached_tokenizer_from_config(model_config)
        if model is not None:
            config.model = str(model)
        info = Glm41vProcessingInfo(InputProcessingContext(config, tokenizer))
        return Glm41vMultiModalProcessor(info, Glm41vDummyInputsBuilder(info), cache=cache)

    return make


@pytest.fixture(scope="session")
def processor(make_processor: MakeProcessor) -> Glm41vMultiModalProcessor:
    return make_processor()


@pytest.fixture(scope="session")
def hf_processor() -> Glm4vProcessor:
    return AutoProcessor.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Where a `web.Host` answers on 127.0.0.1."""
    with serve() as found:
        yield found
