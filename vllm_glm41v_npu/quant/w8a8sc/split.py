# SPDX-License-Identifier: Apache-2.0
"""Fuses the parts of layers and splits them over ranks, as vLLM's parallel layers do when loading.

The names, and the shapes, are those of the network's parameters: what vLLM's `sharded_state` files
hold. Static layers have the tensors of vllm-ascend's schemes W8A8S and W8A8SC.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import pad

from vllm_glm41v_npu.checkpoint.folder import plain_name
from vllm_glm41v_npu.checkpoint.shapes import TEXT, uneven
from vllm_glm41v_npu.models.packed import ROWS
from vllm_glm41v_npu.models.rope import head_size
from vllm_glm41v_npu.models.weights import FUSED, IN_DEQ_SCALE

Sink = Callable[[int, str, torch.Tensor], None]
"""Takes a rank, a parameter's name, and its value."""

# What a layer's name ends with -> how it is split. The first that fits counts.
SPLITS = {
    ".self_attn.qkv_proj": "heads",
    ".attn.qkv": "thirds",
    ".gate_up_proj": "halves",
    ".merger.proj": "rows",
    ".o_proj": "columns",
    ".attn.proj": "columns",
    ".down_proj": "columns",
    ".embed_tokens": "vocabulary",
    ".lm_head": "vocabulary",
    "norm": "whole",
    "norm1": "whole",
    "norm2": "whole",
    ".patch_embed.proj": "whole",
    ".patch_embed.motion": "whole",
    ".downsample": "whole",
    ".position_embedding": "whole",
}
FUSED_PARTS = {".qkv_proj.": ("q", "k", "v"), ".gate_up_proj.": (0, 1)}
VOCABULARY_PADDING = 64  # vLLM's DEFAULT_VOCAB_PADDING_SIZE

LAYER_NORM = "post_projection_norm"
"""The one norm that has a bias by right."""

# vLLM's attention registers these for a quantized key-value cache, and sharded_state wants them.
CACHE_SCALES = ("_k_scale", "_prob_scale", "_q_scale", "_v_scale")

PER_TENSOR = ("input_scale", "input_offset")


class ShardingError(ValueError):
    """A checkpoint cannot be split over so many ranks; the message says why."""


def check_split(config: Any, tp_size: int) -> None:
    """Raises ShardingError where the sizes in `config` do not divide by `tp_size`."""
    wrong = uneven(config, tp_size)
    if wrong:
        raise ShardingError(
            f"This checkpoint has {', '.join(wrong)}, which {tp_size} ranks cannot share evenly. "
            "Choose another --tp."
        )


def split_of(layer: str) -> str:
    """How a layer is split; raises ShardingError where it is none of this network's."""
    for ending, kind in SPLITS.items():
        if f".{layer}".endswith(ending):
            return kind
    raise ShardingError(f"It is not known how the layer {layer!r} is split over ranks.")


def is_rms_norm(layer: str) -> bool:
    """By the last part of the layer's name, whichever naming it has."""
    last = layer.rpartition(".")[2]
    return "norm" in last and last != LAYER_NORM


def is_norm_bias(name: str) -> bool:
    """Whether a tensor is the bias of an RMSNorm, which msModelSlim adds."""
    layer, _, suffix = plain_name(name).rpartition(".")
    return suffix == "bias" and is_rms_norm(layer)


def rank_bias(layer: str, bias: torch.Tensor, rank: int) -> torch.Tensor:
    """A layer's quant_bias int32 [N] on a rank; where ranks add up, only the first has one."""
    return torch.zeros_like(bias) if split_of(layer) == "columns" and rank > 0 else bias


class Splitter:
    """Gives `sink` the parameters of every rank.

    Args:
        config: The checkpoint's.
        tp_size: Number of ranks; `check_split` comes first.
        sink: What takes them.
        biased_norms: Every RMSNorm has a bias, which is zero where the checkpoint has none.
    """

    def __init__(self, config: Any, tp_size: int, sink: Sink, biased_norms: bool = False) -> None:
        self.config, self.tp_size, self.sink = config, tp_size, sink
        self.biased_norms = biased_norms
        self.waiting: dict[str, dict[object, torch.Tensor]] = defaultdict(dict)
        self.norm_biases: dict[str, torch.Tensor] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """One tensor, in the network's layout and with its name, but for parts of fused layers."""
        for part, (fused, shard) in FUSED.items():
            if part in name:
                target = name.replace(part, fused)
                self.waiting[target][shard] = tensor
                if len(self.waiting[target]) == len(FUSED_PARTS[fused]):
                    parts = self.waiting.pop(target)
                    self._emit(target, _fuse(target, [parts[key] for key in FUSED_PARTS[fused]]))
                return
        self._emit(name, tensor)

    def finish(self) -> None:
        """What no tensor on disk stands for; raises ShardingError where parts are missing."""
        if self.waiting:
            raise ShardingError(
                f"The checkpoint has only a part of {', '.join(sorted(self.waiting))}. Copy it "
                "again, or quantize again."
            )
        for layer, bias in self.norm_biases.items():
            self._to_all(f"{layer}.bias", bias)
        for index in range(self.config.text_config.num_hidden_layers):
            for scale in CACHE_SCALES:
                self._to_all(f"{TEXT}layers.{index}.self_attn.attn.{scale}", torch.ones(()))

    def _emit(self, name: str, tensor: torch.Tensor) -> None:
        layer, _, suffix = name.rpartition(".")
        if suffix in IN_DEQ_SCALE:
            return
        if suffix in PER_TENSOR:
            # float32 on disk; the parameter of the offset is int8, that of the scale a float.
            self._to_all(name, tensor.to(torch.int8) if suffix == "input_offset" else tensor)
            return
        if suffix not in ROWS:
            raise ShardingError(f"It is not known how {name!r} is split over ranks.")
        kind = split_of(layer)
        if kind == "whole":
            self._whole(layer, suffix, tensor)
            return
        if kind == "vocabulary" and self.config.tie_word_embeddings:
            name = "language_model.lm_head.weight"  # of two names for one, vLLM saves the first
        for rank in range(self.tp_size):
            self.sink(rank, name, self._slice(layer, kind, suffix, tensor, rank))

    def _whole(self, layer: str, suffix: str, tensor: torch.Tensor) -> None:
        if self.biased_norms and is_rms_norm(layer):
            if suffix == "bias":
                self.norm_biases[layer] = tensor
                return
            self.norm_biases.setdefault(layer, torch.zeros_like(tensor))
        self._to_all(f"{layer}.{suffix}", tensor)

    def _to_all(self, name: str, tensor: torch.Tensor) -> None:
        for rank in range(self.tp_size):
            self.sink(rank, name, tensor)

    def _slice(
        self, layer: str, kind: str, suffix: str, tensor: torch.Tensor, rank: int
    ) -> torch.Tensor:
        """A rank's share; the first dimension is that of the output channels."""
        if kind == "columns":  # ranks take different inputs of all outputs
            if suffix == "weight":
                return tensor.chunk(self.tp_size, dim=1)[rank]
            return rank_bias(layer, tensor, rank) if suffix == "quant_bias" else tensor
        if kind == "vocabulary":
            # [vocab, hidden] -> [padded / ranks, hidden]
            rows = -(-len(tensor) // VOCABULARY_PADDING) * VOCABULARY_PADDING // self.tp_size
            share = tensor[rank * rows : (rank + 1) * rows]
            return pad(share, (0, 0, 0, rows - len(share)))
        if kind == "heads":
            return torch.cat(self._heads(tensor, rank))
        parts = {"rows": 1, "halves": 2, "thirds": 3}[kind]
        return torch.cat([part.chunk(self.tp_size)[rank] for part in tensor.chunk(parts)])

    def _heads(self, tensor: torch.Tensor, rank: int) -> list[torch.Tensor]:
        """A rank's q, k and v; with fewer key-value heads than ranks, several have the same."""
        text = self.config.text_config
        q_heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
        q, k, v = tensor.split([head_size(text) * n for n in (q_heads, kv_heads, kv_heads)])
        copies = max(1, self.tp_size // kv_heads)
        shares = self.tp_size // copies
        return [q.chunk(self.tp_size)[rank], *(x.chunk(shares)[rank // copies] for x in (k, v))]


def _fuse(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """The parts of a fused layer, or their common value where it has one for all."""
    if name.rpartition(".")[2] not in PER_TENSOR:
        return torch.cat(parts)
    if any(not torch.equal(part, parts[0]) for part in parts):
        raise ShardingError(
            f"The parts of {name} differ ({', '.join(f'{part.item():.8g}' for part in parts)}), "
            "and the fused layer has one value. Quantize again."
        )
    return parts[0]
