# SPDX-License-Identifier: Apache-2.0
"""The size of a network, counted from its config.json or from the published checkpoint's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeGuard

from vllm_glm41v_npu.checkpoint.folder import Checkpoint
from vllm_glm41v_npu.checkpoint.names import NETWORK
from vllm_glm41v_npu.checkpoint.shapes import checkpoint_shapes, head_size
from vllm_glm41v_npu.planning.chips import PlanError
from vllm_glm41v_npu.processing.grid import PatchGeometry, PixelLimits, smart_resize

PUBLISHED_TEXT = {
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "max_position_embeddings": 65536,
}
PUBLISHED_VISION = {
    "depth": 24,
    "hidden_size": 1536,
    "image_size": 336,
    "intermediate_size": 13696,
    "num_heads": 12,
    "out_hidden_size": 4096,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
PUBLISHED_LIMITS = PixelLimits(min_pixels=112 * 112, max_pixels=9_633_792)
"""The limits in the published preprocessor_config.json."""

OPTIONAL = {"in_channels": 3, "attention_bias": False}
"""Keys that a vision_config may leave out, with transformers' defaults."""


class Picture(NamedTuple):
    """A picture: its pixels, the patches of the vision tower, the tokens of the decoder."""

    width: int
    height: int
    patches: int
    tokens: int


class Model:
    """The counts of weights of a network: matrices and embeddings; the rest is in `total` alone.

    Args:
        text: The text settings of a config.json, of which the keys of PUBLISHED_TEXT are read.
        vision: Its vision_config, likewise.
        limits: The pixels of its pictures.
        tied: True where the head shares its weights with the embedding.
    """

    def __init__(
        self,
        text: Mapping[str, Any],
        vision: Mapping[str, Any],
        limits: PixelLimits,
        tied: bool = False,
    ) -> None:
        self.text, self.vision = SimpleNamespace(**text), SimpleNamespace(**OPTIONAL | dict(vision))
        self.config = SimpleNamespace(
            text_config=self.text, vision_config=self.vision, tie_word_embeddings=tied
        )
        self.limits = limits
        self.geometry = PatchGeometry.from_vision_config(self.vision)

    @classmethod
    def published(cls) -> Model:
        """Return the size of GLM-4.1V-9B-Thinking."""
        return cls(PUBLISHED_TEXT, PUBLISHED_VISION, PUBLISHED_LIMITS)

    @classmethod
    def read(cls, folder: Path) -> Model:
        """Return the size of a checkpoint's network; weights need not be there.

        Raises:
            PlanError: It has no config.json, or one that lacks a size.
        """
        checkpoint = Checkpoint(folder)
        config = checkpoint.config
        if config is None:
            raise PlanError(f"{folder / 'config.json'} is missing, or holds no JSON object.")
        vision = config.get("vision_config")
        if not isinstance(vision, dict):
            raise PlanError(f"{folder / 'config.json'} has no vision_config: not a GLM-4.1V.")
        sizes = [(checkpoint.text_config, PUBLISHED_TEXT), (vision, PUBLISHED_VISION)]
        for part, known in sizes:
            if wrong := [key for key in known if not _is_size(part.get(key))]:
                raise PlanError(
                    f"{folder / 'config.json'} has no positive number for {', '.join(wrong)}. "
                    "Use the file that belongs to the weights."
                )
        tied = bool(config.get("tie_word_embeddings"))
        return cls(checkpoint.text_config, vision, _limits(checkpoint), tied)

    @cached_property
    def weights(self) -> dict[str, int]:
        """Tensor name to its count of weights."""
        return {name: math.prod(shape) for name, shape in checkpoint_shapes(self.config).items()}

    @property
    def total(self) -> int:
        return sum(self.weights.values())

    @property
    def linear(self) -> int:
        """Weights of the decoder's linear layers, which may be quantized."""
        return self._count(f"{NETWORK.text}layers.", "_proj.weight")

    @property
    def down_proj(self) -> int:
        """Weights of the down_proj layers, which stay float unless asked for."""
        return self._count(f"{NETWORK.text}layers.", ".down_proj.weight")

    @property
    def head(self) -> int:
        """Weights of the output projection; where it is tied it is the embedding again."""
        return self.text.vocab_size * self.text.hidden_size

    @property
    def vision_total(self) -> int:
        return self._count(NETWORK.vision, "")

    @property
    def vision_block(self) -> int:
        """Weights of all blocks of the vision tower; each patch is multiplied by them."""
        return self._count(f"{NETWORK.vision}blocks.", "qkv.weight", "proj.weight")

    @property
    def vision_merging(self) -> int:
        """Weights behind the blocks of the vision tower; each token is multiplied by them."""
        return self._count(f"{NETWORK.vision}downsample", ".weight") + self._count(
            f"{NETWORK.vision}merger", "proj.weight"
        )

    def _count(self, beginning: str, *endings: str) -> int:
        return sum(
            count
            for name, count in self.weights.items()
            if name.startswith(beginning) and name.endswith(endings)
        )

    def picture(self, width: int, height: int) -> Picture:
        """Return a picture of these pixels.

        Raises:
            ValueError: It is empty, or its sides have a ratio over 200.
        """
        grid = self.geometry.grid(*smart_resize(height, width, self.geometry, self.limits))
        return Picture(width, height, math.prod(grid), self.geometry.num_tokens(grid))

    def kv_bytes(self, tp_size: int) -> int:
        """Return the KV cache's bytes of one token in 16 bits on each of `tp_size` chips.

        Where there are fewer KV heads than chips, heads are repeated.
        """
        text = self.text
        heads = max(1, text.num_key_value_heads // tp_size)
        return 2 * 2 * heads * head_size(text) * text.num_hidden_layers


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and value > 0


def _limits(checkpoint: Checkpoint) -> PixelLimits:
    """Return the pixel limits of a checkpoint; the published ones where it has no file of them."""
    everything = checkpoint.read_json("processor_config.json") or {}
    settings = everything.get("image_processor") or checkpoint.read_json("preprocessor_config.json")
    size = (settings or {}).get("size") or {}
    least, most = size.get("shortest_edge"), size.get("longest_edge")
    return PixelLimits(least, most) if _is_size(least) and _is_size(most) else PUBLISHED_LIMITS
