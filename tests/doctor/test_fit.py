# SPDX-License-Identifier: Apache-2.0
"""The host, and whether a checkpoint fits it: dtype and memory."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.doctor.machines import (
    A2,
    BFLOAT16,
    GIB,
    say,
    write_memory,
    write_table,
    write_weights,
)
from vllm_glm41v_npu.backends import ATLAS_310P, CPU
from vllm_glm41v_npu.checkpoint.folder import Checkpoint
from vllm_glm41v_npu.doctor import model
from vllm_glm41v_npu.planning.model_size import PUBLISHED_TEXT, PUBLISHED_VISION

PUBLISHED = {
    "model_type": "glm4v",
    "text_config": PUBLISHED_TEXT,
    "vision_config": PUBLISHED_VISION,
}


def test_programs_that_vllm_runs(machine):
    """Guards against a start that fails for want of lscpu, and slow steps for want of g++."""
    context = machine(PATH="/nowhere")
    assert say(context, "lscpu").status == "fail"
    assert say(context, "C++ compiler").status == "warn"
    assert say(machine(PATH="/nowhere", TORCH_COMPILE_DISABLE="1"), "C++ compiler").status == "ok"
    assert "no-such-compiler" in say(machine(CXX="no-such-compiler"), "C++ compiler").found


@pytest.mark.parametrize(
    ("available", "value", "status"),
    [(60, "", "ok"), (40, "", "warn"), (40, "4", "ok"), (3, "4", "warn"), (60, "4.5", "fail")],
)
def test_kv_cache_on_the_cpu(machine, tmp_path, available, value, status):
    """Guards against vLLM refusing to start because the memory it reserves is not free."""
    context = machine(VLLM_CPU_KVCACHE_SPACE=value)
    write_memory(tmp_path, total=64, available=available)
    assert say(context, "KV cache").status == status


def test_the_size_to_set(machine, large, tmp_path):
    """Guards an advice that vLLM then follows, for the model that is asked about."""
    context = machine(large)
    (large / "config.json").write_text(json.dumps(PUBLISHED | {"dtype": "bfloat16"}))
    write_memory(tmp_path, total=128, available=100)
    advice = say(context, "KV cache").advice
    assert "export VLLM_CPU_KVCACHE_SPACE=" in advice
    assert 10 < int(advice.split("SPACE=")[1].split("`")[0]) < 50  # the weights take 38
    write_memory(tmp_path, total=64, available=20)
    context = replace(context)  # nothing is remembered
    assert "The model does not fit" in say(context, "KV cache").advice


def test_memory_of_a_container(machine, tmp_path):
    """Guards against counting the host's memory where the container has less."""
    (tmp_path / "sys" / "fs" / "cgroup").mkdir(parents=True)
    (tmp_path / "sys" / "fs" / "cgroup" / "memory.max").write_text(f"{8 * GIB}\n")
    context = machine()
    assert context.memory is not None
    assert (context.memory.total, context.memory.available) == (8 * GIB, 8 * GIB)


@pytest.mark.parametrize("backend", [CPU, replace(CPU, auto_dtype="float32"), ATLAS_310P])
def test_dtype_is_what_vllm_makes_of_auto(monkeypatch, backend):
    """Guards against advice that another rule than the patch's and vLLM's has overtaken."""
    import torch
    from transformers import PretrainedConfig
    from vllm.config import model as model_config

    from vllm_glm41v_npu.family import MODEL_TYPE
    from vllm_glm41v_npu.patches import auto_dtype

    verify = model_config._get_and_verify_dtype
    verify = getattr(verify, "__wrapped__", verify)
    monkeypatch.setattr(model_config, "_get_and_verify_dtype", verify)
    monkeypatch.setattr(auto_dtype, "current_backend", lambda: backend)
    auto_dtype.apply()
    for name in ("float32", "bfloat16", "float16"):
        keys: dict[str, Any]
        for keys in ({}, {"quantization_config": {"quant_method": "awq"}}):
            config = PretrainedConfig(dtype=getattr(torch, name), **keys)
            config.model_type = MODEL_TYPE
            real = model_config._get_and_verify_dtype("", config, "auto", is_pooling_model=False)
            assert f"torch.{model.resolved_dtype(backend, name, bool(keys))}" == str(real)


@pytest.fixture
def large(copy) -> Path:
    """As many bfloat16 weights as the real model has, of no size on the disk."""
    write_weights(copy / "model.safetensors", {"model.layers.0.w": ("BF16", [10_292_777_472])})
    config = json.loads((copy / "config.json").read_text()) | {"dtype": "bfloat16"}
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize(
    ("total", "available", "status"), [(64, 60, "ok"), (64, 10, "warn"), (16, 10, "fail")]
)
def test_memory_of_the_host(machine, large, tmp_path, total, available, status):
    """Guards against a process that is killed while it loads."""
    context = machine(large, FAKE_VLLM=BFLOAT16)
    write_memory(tmp_path, total, available)
    finding = say(context, "model memory")
    assert finding.status == status
    assert "20.6 GB of weights in bfloat16" in finding.found


@pytest.mark.parametrize(
    ("table", "visible", "status", "said"),
    [
        (A2, "0,1", "ok", "2 chip(s) of 68.7 GB"),
        (A2.replace("65536", "21527"), "0,1", "warn", "--tensor-parallel-size 2"),
        (A2.replace("3359 / 65536", "3359 / 21527"), "0,1", "warn", "2 chip(s) of 22.6 GB"),
        (A2.replace("65536", "21527"), "1", "fail", "1 chip(s)"),
    ],
)
def test_memory_of_npus(ascend, machine, large, table, visible, status, said):
    """Guards against a model that is larger than a chip, and chips counted that vLLM cannot see."""
    context = machine(large, device="npu", ASCEND_RT_VISIBLE_DEVICES=visible)
    write_table(context, table)
    finding = say(context, "model memory")
    assert finding.status == status
    assert said in finding.found + finding.advice


def test_headers_are_read_and_nothing_else(large):
    """Guards against a doctor that reads 20 GB to say how large they are."""
    started = time.monotonic()
    (tensor,) = Checkpoint(large).tensors.values()
    assert (tensor.size_in("float32"), tensor.size_in("bfloat16")) == (41171109888, 20585554944)
    assert time.monotonic() - started < 1
