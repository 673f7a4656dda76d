# SPDX-License-Identifier: Apache-2.0
"""Random checkpoints of odd shapes, written by transformers, for parity tests."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, Glm4vConfig, Glm4vForConditionalGeneration

TINY = Path(__file__).parents[1] / "assets" / "glm41v-tiny"
"""The trained checkpoint; its tokenizer, template and preprocessor serve the random ones too."""


@dataclass(frozen=True)
class Shape:
    """What varies between the random checkpoints."""

    name: str
    hidden_size: int
    heads: int
    kv_heads: int
    layers: int
    mrope_section: tuple[int, ...]
    vision_hidden: int
    vision_heads: int
    vision_depth: int
    image_size: int


# Ascend's attention and rope kernels take heads of 128 channels.
CHIP_SHAPES = (
    Shape("chip-heads", 512, 4, 2, 3, (8, 12, 12), 256, 2, 3, 336),
    Shape("chip-deep", 256, 2, 1, 6, (16, 6, 10), 128, 1, 5, 56),
)

# Wide enough for two ranks of W8A8SC, each of which takes more than 256 inputs.
COMPRESSED_SHAPE = Shape("chip-wide", 1024, 8, 2, 2, (8, 12, 12), 256, 2, 2, 112)

SHAPES = (
    Shape("wide-heads", 256, 2, 1, 3, (8, 12, 12), 128, 2, 3, 336),
    Shape("many-kv", 384, 12, 4, 2, (2, 3, 3), 96, 3, 2, 112),
    Shape("deep-narrow", 128, 2, 2, 6, (10, 3, 3), 64, 1, 5, 56),
)


def link_tiny(folder: Path, config: dict[str, Any]) -> None:
    """The trained checkpoint in another folder, with another config."""
    for file in TINY.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    (folder / "config.json").write_text(json.dumps(config))


def config_of(shape: Shape) -> Glm4vConfig:
    """A config of this shape with the tiny checkpoint's vocabulary and token ids."""
    tiny = AutoConfig.from_pretrained(TINY)
    text = tiny.text_config.to_dict() | {
        "hidden_size": shape.hidden_size,
        "intermediate_size": 2 * shape.hidden_size,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "num_hidden_layers": shape.layers,
        "max_position_embeddings": 8192,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 2 * sum(shape.mrope_section) * shape.heads / shape.hidden_size,
            "mrope_section": list(shape.mrope_section),
        },
    }
    vision = tiny.vision_config.to_dict() | {
        "hidden_size": shape.vision_hidden,
        "num_heads": shape.vision_heads,
        "depth": shape.vision_depth,
        "image_size": shape.image_size,
        "out_hidden_size": shape.hidden_size,
        "intermediate_size": 3 * shape.hidden_size,
    }
    token_ids = {key: getattr(tiny, key) for key in tiny.to_dict() if key.endswith("_token_id")}
    return Glm4vConfig(
        text_config=text,
        vision_config=vision,
        architectures=["Glm4vForConditionalGeneration"],
        dtype="float32",
        **token_ids,
    )


def write_checkpoint(shape: Shape, folder: Path, seed: int = 0) -> Path:
    """Write a random float32 checkpoint of this shape; returns its folder.

    The weights are large enough that pictures and positions change the answer.
    """
    torch.manual_seed(seed)
    model = Glm4vForConditionalGeneration(config_of(shape)).float().eval()
    for name, param in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            param.data.uniform_(0.5, 1.5)
        elif name.endswith("bias"):
            param.data.normal_(0, 0.3)
        elif "embed" in name and "patch_embed" not in name:
            param.data.normal_(0, 0.5)
        else:
            param.data.normal_(0, param[0].numel() ** -0.5)
    model.save_pretrained(folder)
    for file in TINY.iterdir():
        if file.name not in {"config.json", "model.safetensors", "README.md"}:
            shutil.copy(file, folder)
    return folder
