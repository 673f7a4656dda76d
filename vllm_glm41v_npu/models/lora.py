# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters: checked, and brought to this network's order of q and k, before vLLM packs them.

vLLM sets `lora_manager` on the model once, and hands that manager every adapter it has read. The
model's property calls `take_over_adapters`, which is all that this package adds to it.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from vllm.model_executor.models.utils import PPMissingLayer

from vllm_glm41v_npu.models.rope import deinterleave

REORDERED = (".q_proj", ".k_proj")
"""Ends of the names of modules whose rows change their order at load."""


def take_over_adapters(manager: Any, model: nn.Module, head_dim: int, rotated: int) -> None:
    """Check and reorder each adapter on its way to `manager`, a LoRAModelManager of vLLM.

    Args:
        manager: vLLM's manager; its `add_adapter` is wrapped.
        model: The network, with vLLM's LoRA layers in it.
        head_dim: Channels of one decoder head.
        rotated: Leading channels of a head that are rotated.
    """
    add_adapter = manager.add_adapter

    def add_reordered(adapter: Any) -> bool:
        refuse_unknown_modules(adapter, manager, model)
        deinterleave_adapter(adapter, head_dim, rotated)
        return add_adapter(adapter)

    manager.add_adapter = add_reordered


def refuse_unknown_modules(adapter: Any, manager: Any, model: nn.Module) -> None:
    """Refuse an adapter with weights for modules that `model` does not adapt.

    vLLM compares the last part of a name alone, so weights for layer 99, or for the vision tower,
    would pass and change nothing.

    Raises:
        ValueError: The adapter has such weights.
    """
    adapted = {*manager.modules}.union(*manager.packed_modules.values())
    elsewhere = tuple(  # layers of other stages of a pipeline
        f"{name}." for name, layer in model.named_modules() if isinstance(layer, PPMissingLayer)
    )
    names = sorted({*adapter.loras} - adapted)
    unknown = [name for name in names if not name.startswith(elsewhere)]
    if unknown:
        raise ValueError(
            f"The LoRA adapter has weights for {len(unknown)} modules that cannot be adapted, "
            f"such as {unknown[0]}: the model has no such module, or it is not one of the "
            "decoder's projections. Train the adapter on those alone."
        )


def deinterleave_adapter(adapter: Any, head_dim: int, rotated: int) -> None:
    """Permute the q and k rows of an adapter's B matrices, [rows, rank], as those of the weights.

    An adapter is trained against the checkpoint, whose q and k rows are interleaved; see
    `rope.deinterleave`.
    """
    for name, weights in adapter.loras.items():
        if name.endswith(REORDERED):
            weights.lora_b = deinterleave(weights.lora_b, head_dim, rotated)
