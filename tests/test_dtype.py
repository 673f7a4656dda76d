# SPDX-License-Identifier: Apache-2.0
"""The dtype that `--dtype auto` becomes on each backend, and the dtypes that are refused."""

from __future__ import annotations

import json
import logging
import types
from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import PretrainedConfig

from tests.checkpoints import TINY, link_tiny
from vllm_glm41v_npu.backends import ATLAS_310P, CPU, Backend
from vllm_glm41v_npu.checks import check_dtype, register_checks
from vllm_glm41v_npu.family import ARCHITECTURE
from vllm_glm41v_npu.patches import auto_dtype

AVX2 = replace(CPU, auto_dtype="float32")
QUANTIZED = {"quantization_config": {"quant_method": "awq"}}


@pytest.fixture
def choose_dtype(monkeypatch):
    """Install the dtype rule of a backend, and take it out again after the test."""
    from vllm.config import model as model_config
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    verify = model_config._get_and_verify_dtype
    original = getattr(verify, "__wrapped__", verify)
    monkeypatch.setattr(model_config, "_get_and_verify_dtype", original)
    monkeypatch.setitem(MODELS_CONFIG_MAP, ARCHITECTURE, None)

    def choose(backend: Backend):
        monkeypatch.setattr(auto_dtype, "current_backend", lambda: backend)
        auto_dtype.apply()
        register_checks(ARCHITECTURE, [partial(check_dtype, backend=backend)], [])

        def resolve(name: str, model_type="glm4v", **keys) -> torch.dtype:
            config = PretrainedConfig(dtype=torch.bfloat16, **keys)
            config.model_type = model_type
            verify = model_config._get_and_verify_dtype
            return verify("", config, name, is_pooling_model=False)

        return resolve, MODELS_CONFIG_MAP[ARCHITECTURE]

    return choose


def test_auto_dtype_is_the_backends(choose_dtype):
    """Guards against slow bfloat16 on AVX2, and against another dtype for other models, for a
    dtype that the user named, and for quantized weights, which mostly have no float32."""
    resolve, _ = choose_dtype(AVX2)
    assert resolve("auto") == torch.float32
    assert resolve("auto", "llama") == torch.bfloat16
    assert resolve("float16") == torch.float16
    assert resolve("auto", **QUANTIZED) == torch.bfloat16
    assert resolve("auto", text_config=PretrainedConfig(**QUANTIZED)) == torch.bfloat16


def test_auto_dtype_is_the_only_one(choose_dtype):
    """Guards against bfloat16 on a 310P for quantized weights, refused though nobody named it."""
    resolve, _ = choose_dtype(ATLAS_310P)
    assert resolve("auto", **QUANTIZED) == resolve("auto") == torch.float16


def test_backend_without_a_preference_keeps_the_checkpoints(choose_dtype):
    """Guards against overriding the checkpoint's dtype where it is right."""
    resolve, _ = choose_dtype(CPU)
    assert resolve("auto") == torch.bfloat16


def test_quantized_checkpoint_starts_without_a_dtype(choose_dtype, tmp_path):
    """Guards against the rule being passed by in a vLLM that decides the dtype elsewhere."""
    from vllm.config import ModelConfig

    choose_dtype(AVX2)
    config = json.loads((TINY / "config.json").read_text()) | {"dtype": "bfloat16"}
    for name, keys, expected in ("float", {}, torch.float32), ("int8", QUANTIZED, torch.bfloat16):
        folder = tmp_path / name
        folder.mkdir()
        link_tiny(folder, config | keys)
        assert ModelConfig(str(folder)).dtype == expected


def test_vllm_that_decides_elsewhere_is_said(choose_dtype, monkeypatch, caplog):
    """Guards against an AttributeError, or silence, in a vLLM that the override lets through."""
    from vllm.config import model as model_config

    monkeypatch.delattr(model_config, "_get_and_verify_dtype")
    monkeypatch.setattr(auto_dtype, "current_backend", lambda: AVX2)
    monkeypatch.setattr(auto_dtype.logger, "parent", logging.getLogger())
    caplog.set_level(logging.INFO, auto_dtype.logger.name)  # whatever it was when first asked
    auto_dtype.apply()
    assert "name --dtype float32" in caplog.text


def test_named_dtype_that_computes_wrongly_is_refused(choose_dtype):
    """Guards against bfloat16 on a 310P, which vllm-ascend accepts and computes wrongly."""
    _, check = choose_dtype(ATLAS_310P)
    check.verify_and_update_model_config(types.SimpleNamespace(dtype=torch.float16))
    with pytest.raises(ValueError, match="bfloat16 .* Atlas 310P.*one of: float16"):
        check.verify_and_update_model_config(types.SimpleNamespace(dtype=torch.bfloat16))
