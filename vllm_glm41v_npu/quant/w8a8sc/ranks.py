# SPDX-License-Identifier: Apache-2.0
"""Every rank's share of a checkpoint, with no engine and no NPU.

Fuses the parts of layers and splits them over ranks, as vLLM's parallel layers do when they load.
The names, and the shapes, are those of the network's parameters: vLLM's `sharded_state` files hold
them. Static layers have the tensors of vllm-ascend's schemes W8A8S and W8A8SC.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn.functional import pad

from vllm_glm41v_npu.checkpoint.names import (
    HEAD,
    IN_DEQ_SCALE,
    INPUT_OFFSET,
    NETWORK,
    PER_TENSOR,
    QUANT_BIAS,
    ROWS,
    fused_layer,
    is_rms_norm,
    layer_parts,
    split_name,
)
from vllm_glm41v_npu.checkpoint.shapes import head_size, uneven

Sink = Callable[[int, str, torch.Tensor], None]
"""Takes a rank, a parameter's name, and its value."""

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
"""Ending of a layer's name to how the layer is split. The first that fits counts."""

VOCABULARY_PADDING = 64
"""vLLM's DEFAULT_VOCAB_PADDING_SIZE."""

CACHE_SCALES = ("_k_scale", "_prob_scale", "_q_scale", "_v_scale")
"""Parameters of vLLM's attention for a quantized key-value cache, which sharded_state wants."""


class ShardingError(ValueError):
    """A checkpoint cannot be split over so many ranks; the message says why."""


def share_out(
    stream: Iterable[tuple[str, torch.Tensor]],
    config: Any,
    tp_size: int,
    sink: Sink,
    biased_norms: bool,
) -> None:
    """Give `sink` the tensors of all ranks.

    In memory are one tensor of the stream and the parts of a fused layer. Floats keep the dtype of
    the stream, which may be wider than the parameter's: loading rounds them, here as there.

    Args:
        stream: Names and tensors of a whole checkpoint, in the network's layouts; parts of a fused
            layer by themselves, as `models.convert` yields them.
        config: The checkpoint's.
        tp_size: Number of ranks.
        sink: What takes the tensors.
        biased_norms: Every RMSNorm has a bias, which is zero where the checkpoint has none.

    Raises:
        ShardingError: So many ranks cannot share it, or a part of a layer is missing.
    """
    check_split(config, tp_size)
    splitter = Splitter(config, tp_size, sink, biased_norms)
    for name, tensor in stream:
        splitter.add(name, tensor)
    splitter.finish()


def check_split(config: Any, tp_size: int) -> None:
    """Raise ShardingError where the sizes in `config` do not divide by `tp_size`."""
    wrong = uneven(config, tp_size)
    if wrong:
        raise ShardingError(
            f"This checkpoint has {', '.join(wrong)}, which {tp_size} ranks cannot share evenly. "
            "Choose another --tp."
        )


def split_of(layer: str) -> str:
    """Return how a layer is split; raise ShardingError where it is none of this network's."""
    for ending, kind in SPLITS.items():
        if f".{layer}".endswith(ending):
            return kind
    raise ShardingError(f"It is not known how the layer {layer!r} is split over ranks.")


def rank_bias(layer: str, bias: torch.Tensor, rank: int) -> torch.Tensor:
    """Return a layer's quant_bias int32 [N] on a rank.

    Where the outputs of ranks are added up, only the first rank has a bias.
    """
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
        self.waiting: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        self.norm_biases: dict[str, torch.Tensor] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take one tensor; a part of a fused layer waits for the other parts."""
        part, suffix = split_name(name)
        layer = fused_layer(part)
        if layer == part:
            self._emit(name, tensor)
            return
        target, parts = f"{layer}.{suffix}", layer_parts(layer)
        found = self.waiting[target]
        found[part] = tensor
        if len(found) == len(parts):
            del self.waiting[target]
            self._emit(target, _fuse(target, [found[part] for part in parts]))

    def finish(self) -> None:
        """Give what no tensor on disk stands for; raise ShardingError where parts are missing."""
        if self.waiting:
            raise ShardingError(
                f"The checkpoint has only a part of {', '.join(sorted(self.waiting))}. Copy it "
                "again, or quantize again."
            )
        for layer, bias in self.norm_biases.items():
            self._to_all(f"{layer}.bias", bias)
        for index in range(self.config.text_config.num_hidden_layers):
            for scale in CACHE_SCALES:
                self._to_all(f"{NETWORK.text}layers.{index}.self_attn.attn.{scale}", torch.ones(()))

    def _emit(self, name: str, tensor: torch.Tensor) -> None:
        layer, suffix = split_name(name)
        if suffix in IN_DEQ_SCALE:
            return
        if suffix in PER_TENSOR:
            # float32 on disk; the parameter of the offset is int8, that of the scale a float.
            self._to_all(name, tensor.to(torch.int8) if suffix == INPUT_OFFSET else tensor)
            return
        if suffix not in ROWS:
            raise ShardingError(f"It is not known how {name!r} is split over ranks.")
        kind = split_of(layer)
        if kind == "whole":
            self._whole(layer, suffix, tensor)
            return
        if kind == "vocabulary" and self.config.tie_word_embeddings:
            name = HEAD  # of two names for one, vLLM saves the first
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
        """Return a rank's share; the first dimension is that of the output channels."""
        if kind == "columns":  # ranks take different inputs of all outputs
            if suffix == "weight":
                return tensor.chunk(self.tp_size, dim=1)[rank]
            return rank_bias(layer, tensor, rank) if suffix == QUANT_BIAS else tensor
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
        """Return a rank's q, k and v; with fewer key-value heads than ranks, some ranks have the
        same ones."""
        text = self.config.text_config
        q_heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
        q, k, v = tensor.split([head_size(text) * n for n in (q_heads, kv_heads, kv_heads)])
        copies = max(1, self.tp_size // kv_heads)
        shares = self.tp_size // copies
        return [q.chunk(self.tp_size)[rank], *(x.chunk(shares)[rank // copies] for x in (k, v))]


def _fuse(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """Return the parts of a fused layer as one, or the value that all of them have."""
    if split_name(name)[1] not in PER_TENSOR:
        return torch.cat(parts)
    if any(not torch.equal(part, parts[0]) for part in parts):
        raise ShardingError(
            f"The parts of {name} differ ({', '.join(f'{part.item():.8g}' for part in parts)}), "
            "and the fused layer has one value. Quantize again."
        )
    return parts[0]
