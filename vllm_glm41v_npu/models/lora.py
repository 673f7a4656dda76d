# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters of a decoder whose q and k rows were permuted at load."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.model_executor.models.utils import PPMissingLayer

from vllm_glm41v_npu.models.rope import deinterleave


def deinterleave_adapters(qkv_proj: Any, head_dim: int, rotated: int) -> None:
    """Make vLLM's LoRA wrapper of a qkv projection permute the rows of every adapter it is given.

    An adapter is trained against the checkpoint, whose q and k rows are interleaved; see
    `rope.deinterleave`. Its B matrices [rows, rank] get the permutation of the weights.
    """
    set_lora = qkv_proj.set_lora

    def set_permuted(
        index: int, lora_a: list[torch.Tensor | None], lora_b: list[torch.Tensor | None]
    ) -> None:
        q, k, v = lora_b
        rows = [None if b is None else deinterleave(b, head_dim, rotated) for b in (q, k)]
        set_lora(index, lora_a, [*rows, v])

    qkv_proj.set_lora = set_permuted


def refuse_unknown_modules(manager: Any, model: nn.Module) -> None:
    """Make vLLM's manager of adapters refuse one with weights for what `model` does not adapt.

    vLLM looks at the last part of a name alone, so that those of layer 99, or of the vision tower,
    pass and change nothing.
    """
    add_adapter = manager.add_adapter
    adapted = {*manager.modules}.union(*manager.packed_modules.values())
    elsewhere = tuple(  # layers of other stages of a pipeline
        f"{name}." for name, layer in model.named_modules() if isinstance(layer, PPMissingLayer)
    )

    def add_known(adapter: Any) -> bool:
        names = sorted({*adapter.loras} - adapted)
        unknown = [name for name in names if not name.startswith(elsewhere)]
        if unknown:
            raise ValueError(
                f"The LoRA adapter has weights for {len(unknown)} modules that cannot be adapted, "
                f"such as {unknown[0]}: the model has no such module, or it is not one of the "
                "decoder's projections. Train the adapter on those alone."
            )
        return add_adapter(adapter)

    manager.add_adapter = add_known
