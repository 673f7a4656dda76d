# SPDX-License-Identifier: Apache-2.0
"""The names of a checkpoint's tensors, on disk and in the network; each fact stands here once.

A name is that of a layer, a dot, and a suffix: "visual.merger.proj" and "weight".
"""

from __future__ import annotations

from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Naming:
    """The beginnings of the names of the network's three parts."""

    text: str
    vision: str
    head: str


NETWORK = Naming("language_model.model.", "visual.", "language_model.lm_head.")
"""The parameters of the network, and the shards that are saved from it."""

NEWER = Naming("model.language_model.", "model.visual.", "lm_head.")
OLDER = Naming("model.", "visual.", "lm_head.")
"""Checkpoints: as transformers writes them now, and as in July 2025."""

TO_NETWORK = {
    NEWER.head: NETWORK.head,
    NEWER.text: NETWORK.text,
    NEWER.vision: NETWORK.vision,
    OLDER.text: NETWORK.text,
}
"""Beginning on disk to beginning in the network, in the order of trying: the last is in others."""

HEAD = f"{NETWORK.head}weight"
EMBEDDING = f"{NETWORK.text}embed_tokens.weight"
"""The two matrices of the vocabulary, which are one where config.json ties them."""

FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Layers of the network to the layers on disk that they may be fused of, in this order."""

FUSED_IN = {part: fused for fused, parts in FUSED.items() for part in parts}

DECODER_PARTS = FUSED | {"gate_up_proj": ("gate_up_proj",)}
"""The same for the decoder of the published checkpoint, whose gate_up_proj is one layer on disk:
LoRA adapters are trained against that."""

ROTARY_PARTS = FUSED["qkv_proj"][:2]
"""Layers of the decoder whose rows the network has in another order; see `models.rope`."""

WRAPPER = ".module."
"""A part of the name of each norm that msModelSlim wraps, in its form for MindIE."""

LAYER_NORM = "post_projection_norm"
"""The one norm that has a bias in the model: a LayerNorm. All others are RMSNorms, and a bias of
one of them comes from msModelSlim."""

WEIGHT_SCALE, WEIGHT_OFFSET = "weight_scale", "weight_offset"
INPUT_SCALE, INPUT_OFFSET = "input_scale", "input_offset"
DEQ_SCALE, QUANT_BIAS = "deq_scale", "quant_bias"
"""Suffixes of the tensors that msModelSlim writes for a quantized layer, beside its weight."""

PER_TENSOR = (INPUT_SCALE, INPUT_OFFSET)
"""Suffixes of tensors with one value for the whole layer, which parts of a fused layer share."""

IN_DEQ_SCALE = (WEIGHT_SCALE, WEIGHT_OFFSET)
"""Suffixes of tensors that a layer with a deq_scale computes without: it holds them."""

ROWS = (
    "weight", "bias", "weight_packed", WEIGHT_SCALE, "weight_zero_point", WEIGHT_OFFSET,
    "weight_scale_inv", DEQ_SCALE, QUANT_BIAS,
)  # fmt: skip
"""Suffixes of tensors whose first axis is that of the output channels."""

COLUMNS = ("qweight", "qzeros", "scales")
"""Suffixes of AWQ's and GPTQ's tensors, whose last axis is that of the output channels."""

OF_INPUTS = ("weight_shape", "weight_g_idx", "g_idx")
"""Suffixes of tensors that have no entry for an output channel."""

COMPUTED_SUFFIXES = (".inv_freq", ".position_ids")
"""Ends of names that some trainers write, and that the network computes itself."""


def network_name(disk_name: str) -> str:
    """The name that a tensor on disk has in the network, before its parts are fused.

    A name of the network itself stays as it is.
    """
    name = plain_name(disk_name)
    for on_disk, here in TO_NETWORK.items():
        if name.startswith(on_disk):
            return here + name.removeprefix(on_disk)
    return name


def disk_name(name: str, naming: Naming = NEWER) -> str:
    """The name on disk of a tensor that is called `name` in the network."""
    for here, on_disk in zip(astuple(NETWORK), astuple(naming), strict=True):
        if name.startswith(here):
            return on_disk + name.removeprefix(here)
    return name


def is_older(disk_name: str) -> bool:
    """True where a name on disk can only be of the OLDER naming."""
    return disk_name.startswith((OLDER.vision, f"{OLDER.text}layers."))


def split_name(name: str) -> tuple[str, str]:
    """The layer and the suffix of a tensor's name."""
    layer, _, suffix = name.rpartition(".")
    return layer, suffix


def last_part(layer: str) -> str:
    """The layer's own name, without those of the modules that it is in."""
    return layer.rpartition(".")[2]


def fused_layer(layer: str) -> str:
    """The layer of the network that a layer on disk is fused into, which may be itself."""
    last = last_part(layer)
    return layer.removesuffix(last) + FUSED_IN.get(last, last)


def fused_tensor(name: str) -> str:
    """The tensor of the fused layer that the tensor of a part belongs to."""
    layer, suffix = split_name(name)
    return f"{fused_layer(layer)}.{suffix}"


def layer_parts(layer: str) -> tuple[str, ...]:
    """The layers that a layer of the network may be fused of, or the layer alone."""
    last = last_part(layer)
    return tuple(layer.removesuffix(last) + part for part in FUSED.get(last, (last,)))


def is_wrapped(disk_name: str) -> bool:
    """True where a tensor belongs to a norm that msModelSlim has wrapped."""
    return WRAPPER in disk_name


def plain_name(disk_name: str) -> str:
    """The name without the wrapper's part."""
    return disk_name.replace(WRAPPER, ".")


def is_rms_norm(layer: str) -> bool:
    """True where a layer, in any naming, is an RMSNorm."""
    return "norm" in last_part(layer) and last_part(layer) != LAYER_NORM


def is_norm_bias(name: str) -> bool:
    """True where a tensor, in any naming, is the bias of a norm of either kind.

    Where a description has such a name, vllm-ascend gives every RMSNorm a bias.
    """
    layer, suffix = split_name(plain_name(name))
    return suffix == "bias" and "norm" in last_part(layer)


def is_added_bias(name: str) -> bool:
    """True where a tensor, in any naming, is a bias that msModelSlim has added to an RMSNorm."""
    return is_norm_bias(name) and is_rms_norm(split_name(plain_name(name))[0])
