# SPDX-License-Identifier: Apache-2.0
"""The plan: which linear layers are quantized, and which of them take the same input.

vLLM runs q, k and v of a decoder layer as one layer, and gate and up of the vision tower as
another, so the parts of a group have one type, one input scale and one input offset.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from vllm_glm41v_npu.checkpoint.description import DYNAMIC as W8A8_DYNAMIC
from vllm_glm41v_npu.checkpoint.description import SPARSE as W8A8S
from vllm_glm41v_npu.checkpoint.description import W8A8
from vllm_glm41v_npu.checkpoint.names import NEWER, layer_parts

TYPES = (W8A8, W8A8_DYNAMIC, W8A8S)

QUANTIZED = ("*.self_attn.?_proj", "*.layers.*.mlp.gate_up_proj")
"""Patterns of the layers that msModelSlim's script for GLM-4.1V quantizes."""


class QuantizerError(ValueError):
    """The source, the calibration data or an option cannot be used; the message says why."""


@dataclass(frozen=True)
class Group:
    """Linear layers with one input.

    Attributes:
        modules: Their names inside the block.
        norm: The RMSNorm whose output, and nobody else's, is that input.
    """

    modules: tuple[str, ...]
    norm: str | None = None


@dataclass(frozen=True)
class Block:
    """A part of the network that is in memory by itself.

    Attributes:
        prefix: Its name in the checkpoint, with a dot at the end.
        groups: The linear layers in it that are quantized.
    """

    prefix: str
    groups: tuple[Group, ...]

    @property
    def modules(self) -> Iterator[str]:
        """The full names of the linear layers that are quantized."""
        for group in self.groups:
            yield from (self.prefix + module for module in group.modules)


TEXT_LAYER = (
    Group(layer_parts("self_attn.qkv_proj"), "input_layernorm"),
    Group(("self_attn.o_proj",)),
    Group(("mlp.gate_up_proj",), "post_attention_layernorm"),
    Group(("mlp.down_proj",)),
)
VISION_BLOCK = (
    Group(("attn.qkv",), "norm1"),
    Group(("attn.proj",)),
    Group(layer_parts("mlp.gate_up_proj"), "norm2"),
    Group(("mlp.down_proj",)),
)
MERGER = (Group(("proj",)), Group(layer_parts("gate_up_proj")), Group(("down_proj",)))


@dataclass(frozen=True)
class Plan:
    """The blocks with their quantized layers, in the order of the forward pass."""

    vision: tuple[Block, ...]
    merger: Block
    text: tuple[Block, ...]

    @property
    def blocks(self) -> tuple[Block, ...]:
        return (*self.vision, self.merger, *self.text)

    @property
    def modules(self) -> frozenset[str]:
        """The full names of all linear layers that are quantized."""
        return frozenset(name for block in self.blocks for name in block.modules)


def make_plan(config: Any, quantize: Sequence[str] = (), keep_float: Sequence[str] = ()) -> Plan:
    """Return the default set and what matches `quantize`, without what matches `keep_float`.

    Args:
        config: The checkpoint's config, as `processing.hf_config` reads it.
        quantize: fnmatch patterns of full module names, such as `*.mlp.down_proj`.
        keep_float: Likewise, such as `model.language_model.layers.0.*`.

    Raises:
        QuantizerError: A pattern matches no layer, or splits a group; or nothing is left.
    """
    depth, layers = config.vision_config.depth, config.text_config.num_hidden_layers
    vision = [Block(f"{NEWER.vision}blocks.{index}.", VISION_BLOCK) for index in range(depth)]
    merger = Block(f"{NEWER.vision}merger.", MERGER)
    text = [Block(f"{NEWER.text}layers.{index}.", TEXT_LAYER) for index in range(layers)]
    names = [name for block in (*vision, merger, *text) for name in block.modules]
    for pattern in (*quantize, *keep_float):
        _require_match(pattern, names)
    wanted = {
        name
        for name in names
        if _matches(name, (*QUANTIZED, *quantize)) and not _matches(name, keep_float)
    }
    if not wanted:
        raise QuantizerError("Every layer is kept float; keep fewer, or use the source as it is.")
    return Plan(
        tuple(_only(block, wanted) for block in vision),
        _only(merger, wanted),
        tuple(_only(block, wanted) for block in text),
    )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _require_match(pattern: str, names: Sequence[str]) -> None:
    if not any(fnmatchcase(name, pattern) for name in names):
        kinds = sorted({".".join("*" if p.isdigit() else p for p in n.split(".")) for n in names})
        raise QuantizerError(
            f"No layer that can be quantized matches {pattern!r}. They are: {', '.join(kinds)}."
        )


def _only(block: Block, wanted: set[str]) -> Block:
    """Return the block with the groups that are wanted."""
    groups = []
    for group in block.groups:
        parts = [block.prefix + module in wanted for module in group.modules]
        if all(parts):
            groups.append(group)
        elif any(parts):
            raise QuantizerError(
                f"{', '.join(group.modules)} of {block.prefix[:-1]} run as one layer in vLLM, but "
                "the patterns quantize only a part of them. Name all of them, or none."
            )
    return Block(block.prefix, tuple(groups))
