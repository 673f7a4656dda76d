# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as other tools quantize them, and the float ones that hold the same numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

GROUP = 32
IN_TURN, AWQ = (0, 1, 2, 3, 4, 5, 6, 7), (0, 2, 4, 6, 1, 3, 5, 7)

Tensors = dict[str, torch.Tensor]


def pack(values: torch.Tensor, order: tuple[int, ...] = IN_TURN) -> torch.Tensor:
    """int4 [..., n] to int32 [..., n / 8]; the i-th four bits of each hold channel order[i]."""
    packed = torch.zeros((*values.shape[:-1], values.shape[-1] // 8), dtype=torch.int64)
    for place, channel in enumerate(order):
        packed |= values[..., channel::8].long() << (4 * place)
    return (packed - ((packed >> 31) << 32)).to(torch.int32)


def int4(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers from 0 to 15 around 8 [n, k], and scales [n, k / group]."""
    blocks = weight.unflatten(1, (-1, group))
    scales = (blocks.abs().amax(-1) / 7).bfloat16().float()
    values = (blocks / scales[..., None]).round().clamp(-8, 7).flatten(1) + 8
    return values.long(), scales


def floats(values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | int) -> torch.Tensor:
    """The weight [n, k] that integers, scales and zeros [n, k / group] stand for."""
    group = values.shape[1] // scales.shape[1]
    zeros = zeros if isinstance(zeros, int) else zeros.repeat_interleave(group, 1)
    return (values - zeros) * scales.repeat_interleave(group, 1)


def compressed_tensors(
    weight: torch.Tensor, group: int | None, symmetric: bool
) -> tuple[Tensors, torch.Tensor]:
    values, scales = int4(weight, group or weight.shape[1])
    written = {
        "weight_packed": pack(values),
        "weight_scale": scales.bfloat16(),
        "weight_shape": torch.tensor(weight.shape),
    }
    zeros: torch.Tensor | int = 8
    if not symmetric:
        zeros = torch.randint(6, 10, scales.shape)
        written["weight_zero_point"] = pack(zeros.t()).t()
    return written, floats(values, scales, zeros)


def gptq(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    values, scales = int4(weight, GROUP)
    written = {
        "qweight": pack(values).t(),
        "qzeros": pack(torch.full_like(scales.t(), 7)),  # one less, as GPTQ's first format has it
        "scales": scales.t().bfloat16(),
        "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP,
    }
    return written, floats(values, scales, 8)


def awq(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    values, scales = int4(weight, GROUP)
    zeros = torch.randint(6, 10, scales.shape)
    written = {
        "qweight": pack(values.t(), AWQ),
        "qzeros": pack(zeros.t(), AWQ),
        "scales": scales.t().bfloat16(),
    }
    return written, floats(values, scales, zeros)


def _config(group: int | None, symmetric: bool) -> dict[str, object]:
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "group" if group else "channel",
        "group_size": group,
        "dynamic": False,
    }
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ["lm_head", "re:.*visual.*"],
    }


SETTINGS = {"bits": 4, "group_size": GROUP}
TOOLS: dict[str, tuple[dict[str, object], Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]]]
TOOLS = {
    "W4A16 by group": (_config(GROUP, True), lambda w: compressed_tensors(w, GROUP, True)),
    "W4A16 with zeros": (_config(GROUP, False), lambda w: compressed_tensors(w, GROUP, False)),
    "W4A16 by channel": (_config(None, True), lambda w: compressed_tensors(w, None, True)),
    "GPTQ": (SETTINGS | {"quant_method": "gptq", "desc_act": False, "sym": True}, gptq),
    "AWQ": (
        SETTINGS
        | {
            "quant_method": "awq",
            "version": "gemm",
            "zero_point": True,
            "modules_to_not_convert": ["visual"],
        },
        awq,
    ),
}
"""Form to its quantization_config, and what writes a weight's tensors and says what they are."""


def write(source: Path, form: str, folder: Path, same: Path) -> None:
    """Write `source`'s decoder in a form to `folder`, and in float what that stands for to `same`.

    Both in bfloat16, as such checkpoints are.
    """
    torch.manual_seed(0)
    settings, quantize = TOOLS[form]
    quantized: Tensors = {}
    plain: Tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if "language_model.layers" in name and tensor.dim() == 2:
            tensors, meant = quantize(tensor)
            layer = name.removesuffix(".weight")
            quantized |= {f"{layer}.{suffix}": value for suffix, value in tensors.items()}
            plain[name] = meant.bfloat16()
        else:
            quantized[name] = plain[name] = tensor.bfloat16()
    config = json.loads((source / "config.json").read_text()) | {"dtype": "bfloat16"}
    for out, tensors, extra in (
        (folder, quantized, {"quantization_config": settings}),
        (same, plain, {}),
    ):
        shutil.copytree(source, out)
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        (out / "config.json").write_text(json.dumps(config | extra))
