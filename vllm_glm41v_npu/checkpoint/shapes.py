# SPDX-License-Identifier: Apache-2.0
"""The tensors of a float checkpoint, and over how many ranks the network can be split.

Nothing but the config is needed: neither torch nor vLLM is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_glm41v_npu.checkpoint.names import (
    EMBEDDING,
    HEAD,
    LAYER_NORM,
    NETWORK,
    layer_parts,
    split_name,
)

Shape = tuple[int, ...]


def head_size(text_config) -> int:
    """Return the channels of a decoder head."""
    return text_config.hidden_size // text_config.num_attention_heads


def _text_shapes(config) -> Iterator[tuple[str, Shape]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    head_dim = head_size(config)
    yield "embed_tokens.weight", (config.vocab_size, hidden)
    yield "norm.weight", (hidden,)
    for index in range(config.num_hidden_layers):
        layer = f"layers.{index}."
        for norm in ("input", "post_self_attn", "post_attention", "post_mlp"):
            yield f"{layer}{norm}_layernorm.weight", (hidden,)
        heads = (config.num_attention_heads, *(config.num_key_value_heads,) * 2)
        for name, count in zip("qkv", heads, strict=True):
            yield f"{layer}self_attn.{name}_proj.weight", (count * head_dim, hidden)
            yield f"{layer}self_attn.{name}_proj.bias", (count * head_dim,)
        yield f"{layer}self_attn.o_proj.weight", (hidden, config.num_attention_heads * head_dim)
        yield f"{layer}mlp.gate_up_proj.weight", (2 * inner, hidden)
        yield f"{layer}mlp.down_proj.weight", (hidden, inner)


def _swiglu_shapes(prefix: str, hidden: int, inner: int) -> Iterator[tuple[str, Shape]]:
    yield f"{prefix}gate_proj.weight", (inner, hidden)
    yield f"{prefix}up_proj.weight", (inner, hidden)
    yield f"{prefix}down_proj.weight", (hidden, inner)


def _vision_shapes(config) -> Iterator[tuple[str, Shape]]:
    hidden, out, patch = config.hidden_size, config.out_hidden_size, config.patch_size
    merge = config.spatial_merge_size
    kernel = (config.in_channels, config.temporal_patch_size, patch, patch)
    yield "patch_embed.proj.weight", (hidden, *kernel)
    yield "patch_embed.proj.bias", (hidden,)
    yield "embeddings.position_embedding.weight", ((config.image_size // patch) ** 2, hidden)
    yield "post_conv_layernorm.weight", (hidden,)
    yield "post_layernorm.weight", (hidden,)
    for index in range(config.depth):
        block = f"blocks.{index}."
        yield f"{block}norm1.weight", (hidden,)
        yield f"{block}norm2.weight", (hidden,)
        yield f"{block}attn.qkv.weight", (3 * hidden, hidden)
        if config.attention_bias:
            yield f"{block}attn.qkv.bias", (3 * hidden,)
        yield f"{block}attn.proj.weight", (hidden, hidden)
        yield from _swiglu_shapes(f"{block}mlp.", hidden, out)
    yield "downsample.weight", (out, hidden, merge, merge)
    yield "downsample.bias", (out,)
    yield "merger.proj.weight", (out, out)
    yield f"merger.{LAYER_NORM}.weight", (out,)
    yield f"merger.{LAYER_NORM}.bias", (out,)
    yield from _swiglu_shapes("merger.", out, config.intermediate_size)


def checkpoint_shapes(config) -> dict[str, Shape]:
    """Return every tensor of a float checkpoint: its name in the network, and its shape on disk."""
    shapes = {NETWORK.text + name: shape for name, shape in _text_shapes(config.text_config)}
    vision = _vision_shapes(config.vision_config)
    shapes |= {NETWORK.vision + name: shape for name, shape in vision}
    if not config.tie_word_embeddings:
        shapes[HEAD] = shapes[EMBEDDING]
    return shapes


def part_shapes(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the parts of each layer that the published checkpoint has fused.

    These are the decoder's gate and up projections; some trainers write them as two tensors.

    Args:
        shapes: As `checkpoint_shapes` returns them.
    """
    found: dict[str, Shape] = {}
    for name, (rows, *rest) in shapes.items():
        layer, suffix = split_name(name)
        parts = layer_parts(layer)
        if parts != (layer,):
            found |= {f"{part}.{suffix}": (rows // len(parts), *rest) for part in parts}
    return found


def uneven(config: Any, tp_size: int) -> list[str]:
    """Return what `tp_size` ranks cannot share evenly, each with its number."""
    text, vision = config.text_config, config.vision_config
    sizes = {
        "attention heads": text.num_attention_heads,
        "intermediate channels": text.intermediate_size,
        "vision heads": vision.num_heads,
        "vision output channels": vision.out_hidden_size,
        "merger channels": vision.intermediate_size,
    }
    wrong = [f"{size} {what}" for what, size in sizes.items() if size % tp_size]
    kv_heads = text.num_key_value_heads
    if kv_heads % tp_size and tp_size % kv_heads:
        wrong.append(f"{kv_heads} key-value heads")
    return wrong
