# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of the true shape of GLM-4.1V-9B, with random weights.

A quantized one is in msModelSlim's format, and all linear layers of the decoder are in int8:
down_proj too, so that the network fits a machine of 24 GiB. Weights are so small that activations
keep their size from layer to layer; nothing it says makes sense.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig

from benchmarks.in_tree import write_layers
from vllm_glm41v_npu.checkpoint.description import FLOAT
from vllm_glm41v_npu.checkpoint.names import disk_name, split_name
from vllm_glm41v_npu.checkpoint.shapes import checkpoint_shapes
from vllm_glm41v_npu.processing.hf_config import register_config
from vllm_glm41v_npu.quant.quantizer.arithmetic import input_scale
from vllm_glm41v_npu.quant.quantizer.plan import W8A8S, make_plan
from vllm_glm41v_npu.quant.quantizer.scheme import Layer, Settings
from vllm_glm41v_npu.quant.quantizer.writer import Writer, new_folder, write_config

LAYERS, VISION_LAYERS = 40, 24
VOCABULARY = 151552
SMALL_VOCABULARY = 8192
MID_LAYERS = 2
ONE_FILE = "model.safetensors"
INPUTS = 6.0
"""Largest value of a layer's normed input that int8 has to hold."""

ALSO_QUANTIZED = ("*.layers.*.mlp.down_proj",)
POOL, PIECE = 1 << 25, 1 << 22


class Noise:
    """Tensors cut from one pool of random numbers: new ones for 9B would take minutes.

    Args:
        pool: [POOL].
    """

    def __init__(self, pool: Tensor) -> None:
        self.pool = pool
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, shape: Sequence[int]) -> Tensor:
        """A tensor of this shape, and of the pool's dtype."""
        out = torch.empty(math.prod(shape), dtype=self.pool.dtype)
        for piece in out.split(PIECE):
            start = int(torch.randint(POOL - len(piece), (), generator=self.generator))
            piece.copy_(self.pool[start : start + len(piece)])
        return out.view(*shape)


def integers(kind: str) -> tuple[Tensor, float]:
    """int8 [POOL], and their standard deviation; for W8A8S, 1 in 100 does not fit 4 bits."""
    normal = torch.randn(POOL)
    if kind == W8A8S:
        wide = torch.rand(POOL) < 0.01
        values = torch.where(wide, 30 * normal, (2.5 * normal).clamp(-8, 7))
    else:
        values = 32 * normal
    values = values.round().clamp(-127, 127)
    return values.to(torch.int8), values.std().item()


def write_checkpoint(
    folder: Path, kind: str, layers: int = LAYERS, vocabulary: int = VOCABULARY
) -> None:
    """Write it to `folder`, which must not exist.

    Args:
        folder: Where to.
        kind: W8A8, W8A8S, or FLOAT, which is in bfloat16 as the published one.
        layers: Of the decoder; fewer make a shorter vision tower too.
        vocabulary: How many tokens there are.
    """
    with new_folder(folder) as target:
        write_layers(target)
        settings = json.loads((target / "config.json").read_text())
        settings["text_config"] |= {"num_hidden_layers": layers, "vocab_size": vocabulary}
        settings["vision_config"] |= {"depth": min(layers, VISION_LAYERS)}
        write_config(target, settings, dtype_of(kind))
        register_config()
        if kind == FLOAT:
            config = AutoConfig.from_pretrained(target)
            save_file(
                {name: tensor for name, tensor, _ in tensors(config, kind)}, target / ONE_FILE
            )
            return
        writer = Writer(target, kind)
        for name, tensor, its_kind in tensors(AutoConfig.from_pretrained(target), kind):
            writer.add(name, tensor, its_kind)
        writer.finish()


def dtype_of(kind: str) -> torch.dtype:
    """What a checkpoint of this type is in, but for int8."""
    return torch.bfloat16 if kind == FLOAT else torch.float16


def tensors(config: Any, kind: str) -> Iterator[tuple[str, Tensor, str]]:
    """Name on disk, value and type of everything that a checkpoint of this config holds."""
    quantized = () if kind == FLOAT else make_plan(config, ALSO_QUANTIZED).modules
    settings = Settings(kind, dtype_of(kind))
    noise = Noise(torch.randn(POOL).to(settings.dtype))
    numbers, deviation = integers(kind)
    whole, inputs = Noise(numbers), torch.tensor(INPUTS)
    scale = input_scale(-inputs, inputs, settings.dtype)
    for network_name, shape in checkpoint_shapes(config).items():
        name = disk_name(network_name)
        layer, suffix = split_name(name)
        size = math.prod(shape[1:]) ** -0.5  # of a weight that keeps the size of its input
        if suffix == "weight" and layer in quantized:
            step = torch.full((shape[0], 1), size / deviation)
            parts = Layer(whole(shape), step, scale).tensors(layer, None, settings)
            yield from ((f"{layer}.{part}", value, kind) for part, value in parts.items())
        elif len(shape) == 1:
            one = 1.0 if suffix == "weight" else 0.0  # a norm's, or a bias
            yield name, torch.full(shape, one, dtype=settings.dtype), "FLOAT"
        else:
            yield name, noise(shape) * size, "FLOAT"
