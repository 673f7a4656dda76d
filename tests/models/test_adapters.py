# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters on their way to vLLM's manager, without an engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from vllm.model_executor.models.utils import PPMissingLayer

from vllm_glm41v_npu.models.glm41v import Glm41vForConditionalGeneration
from vllm_glm41v_npu.models.lora import refuse_unknown_modules
from vllm_glm41v_npu.models.rope import deinterleave

ATTENTION = "language_model.model.layers.0.self_attn"
HEAD_DIM, ROTATED = 8, 4
TEXT_CONFIG = SimpleNamespace(
    hidden_size=2 * HEAD_DIM,
    num_attention_heads=2,
    rope_parameters={"partial_rotary_factor": ROTATED / HEAD_DIM},
)


class Manager:
    """The parts of vLLM's LoRAModelManager that the network sees."""

    def __init__(self) -> None:
        self.modules = {f"{ATTENTION}.qkv_proj": None, f"{ATTENTION}.o_proj": None}
        self.packed_modules = {
            f"{ATTENTION}.qkv_proj": [f"{ATTENTION}.{part}_proj" for part in "qkv"]
        }
        self.added: list[Any] = []

    def add_adapter(self, adapter: Any) -> bool:
        self.added.append(adapter)
        return True


def network() -> Any:
    """A network without layers; vLLM sets its manager as it does on a whole one."""
    model = Glm41vForConditionalGeneration.__new__(Glm41vForConditionalGeneration)
    nn.Module.__init__(model)
    model.config = SimpleNamespace(text_config=TEXT_CONFIG)
    return model


def adapter(*names: str) -> SimpleNamespace:
    """Distinct rows for each module."""
    rows = torch.arange(2.0 * HEAD_DIM)[:, None].repeat(1, 3)  # [rows, rank]
    return SimpleNamespace(loras={name: SimpleNamespace(lora_b=rows.clone()) for name in names})


def test_vllms_manager_gets_reordered_q_and_k() -> None:
    """Guards the setter that vLLM calls, and the rows of q and k; v and o stay."""
    model, manager = network(), Manager()
    model.lora_manager = manager
    assert model.lora_manager is manager
    given = adapter(*(f"{ATTENTION}.{part}_proj" for part in "qkvo"))
    assert manager.add_adapter(given)
    assert manager.added == [given]
    plain = torch.arange(2.0 * HEAD_DIM)[:, None].repeat(1, 3)
    reordered = deinterleave(plain, HEAD_DIM, ROTATED)
    assert not torch.equal(reordered, plain)
    for part, rows in zip("qkvo", (reordered, reordered, plain, plain), strict=True):
        assert torch.equal(given.loras[f"{ATTENTION}.{part}_proj"].lora_b, rows), part


def test_unknown_modules_never_reach_the_manager() -> None:
    """Guards the refusal: vLLM compares only the last part of a name."""
    model, manager = network(), Manager()
    model.lora_manager = manager
    with pytest.raises(ValueError, match=r"1 modules that cannot be adapted, such as .*\.9\."):
        manager.add_adapter(adapter(ATTENTION.replace(".0.", ".9.") + ".q_proj"))
    assert not manager.added


def test_loading_ends_with_the_float16_guard() -> None:
    """Guards formats that fill the parameters themselves: `eval` is the last call of any loader."""
    model = network()
    model.model_config = SimpleNamespace(dtype=torch.float16)
    norm = SimpleNamespace(weight=torch.full((16,), 20000.0))
    layer = SimpleNamespace(post_self_attn_layernorm=norm, post_mlp_layernorm=norm, saturates=False)
    decoder = SimpleNamespace(stage_layers=[layer], layers=[layer])
    model.language_model = SimpleNamespace(model=decoder)
    assert model.eval() is model
    assert layer.saturates
    assert not model.training


def test_layers_of_other_pipeline_stages_are_passed_over() -> None:
    """Guards adapters in a pipeline: a stage has some of the layers, and the file has all."""
    model = nn.Module()
    model.layers = nn.ModuleList([PPMissingLayer(), nn.Linear(1, 1)])
    manager = SimpleNamespace(modules={"layers.1.o_proj": None}, packed_modules={})

    def look_at(*names: str) -> None:
        adapter = SimpleNamespace(loras=dict.fromkeys(names))
        refuse_unknown_modules(adapter, manager, model)

    look_at("layers.0.o_proj", "layers.1.o_proj")
    for name in ("layers.2.o_proj", "layers.01.o_proj", "visual.o_proj"):
        with pytest.raises(ValueError, match=f"1 modules that cannot be adapted, such as {name}"):
            look_at("layers.0.o_proj", name)
