# SPDX-License-Identifier: Apache-2.0
"""The rows of LoRA adapters, and adapters for what the network does not have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from vllm.model_executor.models.utils import PPMissingLayer

from vllm_glm41v_npu.models.lora import deinterleave_adapters, refuse_unknown_modules
from vllm_glm41v_npu.models.rope import deinterleave

HEAD, ROTATED = 8, 4


def test_rows_of_q_and_k_get_the_weights_order() -> None:
    """Guards adapters, trained against interleaved rows; v has no rotary rows."""
    given: list[Any] = []
    layer = SimpleNamespace(set_lora=lambda *arguments: given.append(arguments))
    deinterleave_adapters(layer, HEAD, ROTATED)
    q, k, v = (torch.arange(float(heads * HEAD))[:, None].repeat(1, 3) for heads in (4, 2, 2))
    a: list[torch.Tensor | None] = [torch.ones(3, 5)] * 3
    layer.set_lora(1, a, [q, k, v])
    layer.set_lora(0, a, [q, None, v])
    for (index, lora_a, rows), want_index, want_k in ((given[0], 1, k), (given[1], 0, None)):
        assert index == want_index and lora_a is a
        assert torch.equal(rows[0], deinterleave(q, HEAD, ROTATED)) and torch.equal(rows[2], v)
        assert (
            rows[1] is None
            if want_k is None
            else torch.equal(rows[1], deinterleave(k, HEAD, ROTATED))
        )
    assert not torch.equal(given[0][2][0], q)


def test_adapters_of_unknown_modules_are_refused() -> None:
    """Guards names whose last part alone is known, and those of another pipeline stage."""
    added: list[Any] = []
    manager = SimpleNamespace(
        modules={"layers.1.qkv_proj": 0, "layers.1.o_proj": 0},
        packed_modules={"layers.1.qkv_proj": ["layers.1.q_proj", "layers.1.k_proj"]},
        add_adapter=lambda adapter: added.append(adapter) or True,
    )
    network = nn.Module()
    network.layers = nn.ModuleList([PPMissingLayer(), nn.Linear(1, 1)])
    refuse_unknown_modules(manager, network)
    for names in (["layers.1.q_proj", "layers.1.o_proj"], ["layers.0.q_proj", "layers.1.o_proj"]):
        assert manager.add_adapter(SimpleNamespace(loras=dict.fromkeys(names)))
    assert len(added) == 2
    for name in ("layers.2.o_proj", "visual.o_proj", "layers.10.o_proj"):
        with pytest.raises(ValueError, match=rf"1 modules that cannot be adapted, such as {name}"):
            manager.add_adapter(SimpleNamespace(loras={name: None, "layers.1.o_proj": None}))
    assert len(added) == 2
