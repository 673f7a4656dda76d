# SPDX-License-Identifier: Apache-2.0
"""Quantized layers on the emulated chip, compared with their formula and the CPU's quantizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.ascend.quantized_networks import ask
from tests.ascend.sides import OURS
from tests.quant.cases import write_mindie
from vllm_glm41v_npu.quant.quantizer import TYPES

pytestmark = pytest.mark.ascend

STATIC = ("W8A8", "W8A8S")
MINDIE = "W8A8 in MindIE's form"
LAYERS = {f"{part}.{name}" for part, name in [("self_attn", "qkv_proj"), ("mlp", "gate_up_proj")]}


@pytest.fixture(scope="module")
def found(
    quantized: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Differences of each layer, by type and by layer; see quantized_networks.layers."""
    checkpoints = {kind: quantized(kind) for kind in TYPES}
    folder = tmp_path_factory.mktemp("mindie") / "W8A8"
    checkpoints[MINDIE] = write_mindie(quantized("W8A8"), folder)
    return ask(OURS, "layers", checkpoints, tmp_path_factory.mktemp("found") / "found.json")


@pytest.mark.parametrize("kind", STATIC)
def test_integers_are_the_formulas(found: dict[str, Any], kind: str) -> None:
    """Guards every static layer: the CPU's steps, the exact product, the rounding to float16."""
    assert len(found[kind]) == 9
    for name, layer in found[kind].items():
        assert (layer["quantizer"], layer["result"]) == (0, 0), name
        assert layer["largest"] > 0.1, name


def test_the_form_for_mindie_is_the_plain_one(found: dict[str, Any]) -> None:
    """Guards a description that vllm-ascend neither finds nor knows the names of."""
    assert found[MINDIE] == found["W8A8"]


@pytest.mark.parametrize("kind", STATIC)
def test_a_fused_norm_rounds_once(found: dict[str, Any], kind: str) -> None:
    """Guards the fused norm's scale and offset, and says what is all that fusing changes.

    Its result is not rounded to float16 on the way, so that a few values take the next step.
    """
    fused = [layer for name, layer in found[kind].items() if name.endswith(tuple(LAYERS))]
    assert len(fused) == 6
    for layer in fused:
        assert layer["fused norm"] < 0.501
        assert layer["farthest move"] <= 1
        assert layer["moved by rounding"] < 0.05
    assert any(layer["moved by rounding"] for layer in fused)


def test_dynamic_layers_are_the_formulas(found: dict[str, Any]) -> None:
    """Guards scales of tokens and channels; the sum of two roundings to float16 at most."""
    assert len(found["W8A8_DYNAMIC"]) == 9
    for name, layer in found["W8A8_DYNAMIC"].items():
        assert layer["steps"] <= 1.01, name


def test_norms_stay_in_float_with_lora(emulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards LoRA layers, which multiply the input of the layer that they wrap."""
    from vllm_glm41v_npu.ascend import norms

    with_lora = SimpleNamespace(lora_config=object())
    monkeypatch.setattr(norms, "get_current_vllm_config", lambda: with_lora)
    asked: list[Any] = []
    norm = SimpleNamespace(quantize_output=lambda *scales: asked.append(scales))
    layer = SimpleNamespace(
        input_norms=(norm,), aclnn_input_scale=torch.ones(4), aclnn_input_offset=torch.zeros(4)
    )
    norms.fuse_norms(layer)
    assert not asked
    with_lora.lora_config = None
    norms.fuse_norms(layer)
    assert len(asked) == 1
