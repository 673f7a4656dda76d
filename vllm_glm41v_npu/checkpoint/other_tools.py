# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that other tools quantized, and the backends on which they load; torch-free.

vLLM's own methods compute them, and `models/packed.py` puts their channels in this network's order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_glm41v_npu.backends import ON_ASCEND, ON_CPU
from vllm_glm41v_npu.checkpoint.description import DESCRIPTION, METHOD
from vllm_glm41v_npu.checkpoint.folder import Checkpoint
from vllm_glm41v_npu.checkpoint.problem import Problem

Json = Mapping[str, Any]

NAME = "checkpoint type"
COMPRESSED_TENSORS = "compressed-tensors"
MLX = "MLX"
INSTEAD = (
    "Use the original checkpoint, one of compressed-tensors in int8, or one of `glm41v quantize`."
)

NOWHERE = {
    MLX: "which only runs on Apple's machines",
    "bitsandbytes": "whose packed weights have no rows that could be reordered for this network",
    "gguf": "which transformers 5 does not read for this model",
}
"""Tools whose weights nothing here computes, and why."""

LOADS = {
    ON_CPU: (COMPRESSED_TENSORS, "awq", "gptq", "fp8"),
    ON_ASCEND: (COMPRESSED_TENSORS,),
}
"""Tools whose weights load, by the stack; vllm-ascend runs no other on these chips."""
WHERE = {ON_CPU: "CPUs", ON_ASCEND: "Ascend"}


def tool_of(checkpoint: Checkpoint) -> str | None:
    """Return the tool that quantized a checkpoint, by config.json; None where it names none.

    msModelSlim's form for MindIE has a `quantization_config` that names no method; MLX writes one
    of `bits` and `group_size` alone.
    """
    config = checkpoint.quantization_config or {}
    method = config.get("quant_method")
    if method:
        return str(method).lower()
    mlx = (checkpoint.config or {}).get("quantization")
    if any(isinstance(part, dict) and "bits" in part for part in (mlx, config)):
        return MLX
    return None


def problems(checkpoint: Checkpoint, stack: str | None) -> Iterator[Problem]:
    """Yield why a checkpoint that has no description of msModelSlim's does not load.

    Args:
        checkpoint: Its folder.
        stack: The backend's (`Backend.stack`), None where that is not known.
    """
    tool = tool_of(checkpoint)
    if tool is None:
        return
    found = f"quantized by {tool}"
    if tool == METHOD:
        advice = "Copy the file that msModelSlim wrote beside the weights."
        yield Problem(NAME, f"{found} by its config.json, and there is no {DESCRIPTION}", advice)
    elif tool in NOWHERE:
        yield Problem(NAME, f"{found}, {NOWHERE[tool]}", INSTEAD)
    elif stack is not None:
        loads = LOADS[stack]
        if tool not in loads:
            yield Problem(NAME, f"{found}, and on {WHERE[stack]} {', '.join(loads)} load", INSTEAD)
        elif reason := _unsupported(checkpoint.quantization_config or {}, stack == ON_ASCEND):
            yield Problem(NAME, f"{found} with {reason}", INSTEAD)


def _unsupported(config: Json, on_ascend: bool) -> str | None:
    """Return what is wrong with the settings of a tool whose weights may load; None for nothing."""
    method = str(config.get("quant_method")).lower()
    if method == "fp8":
        return None if config.get("weight_block_size") else _FLOAT8
    if method != COMPRESSED_TENSORS:
        bits = config.get("bits")
        return None if bits == 4 else f"{bits} bits, and vLLM computes 4 on CPUs"
    groups = config.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights, alone = group.get("weights") or {}, not group.get("input_activations")
        bits = weights.get("num_bits")
        if weights.get("type") == "float":
            return None if weights.get("strategy") == "block" and not on_ascend else _FLOAT8
        if alone and on_ascend:
            return f"W{bits}A16, which vllm-ascend does not run in linear layers"
        if alone and bits not in (None, 4):
            return f"W{bits}A16, and vLLM computes W4A16 on CPUs"
    return None


_FLOAT8 = "FP8, for which vLLM has no kernel here"
