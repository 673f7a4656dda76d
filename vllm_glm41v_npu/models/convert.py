# SPDX-License-Identifier: Apache-2.0
"""Turns the tensors of a checkpoint into those of the network: their names and their layouts.

`convert` is a generator over a stream of named tensors, and knows no network: `models.weights`
copies what it yields into parameters, `glm41v compress` splits it over ranks. Every tensor is
checked against the shape that the config demands, and what is missing is named. Four layouts
change: q and k rows (`rope.deinterleave`), the patch embedding (`fold_patch_embed`), the
downsampling convolution, and the packed channels of quantized q and k (`packed`). Layers that are
several tensors on disk and one in the network stay several here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from vllm_glm41v_npu.checkpoint.names import (
    COMPUTED_SUFFIXES,
    EMBEDDING,
    HEAD,
    NETWORK,
    NEWER,
    OLDER,
    ROTARY_PARTS,
    Naming,
    disk_name,
    fused_tensor,
    is_older,
    is_wrapped,
    last_part,
    network_name,
    split_name,
)
from vllm_glm41v_npu.checkpoint.shapes import Shape, checkpoint_shapes, head_size, part_shapes
from vllm_glm41v_npu.models.packed import LayoutError, reorder_channels
from vllm_glm41v_npu.models.rope import deinterleave, rotary_dim
from vllm_glm41v_npu.models.vision import PIXEL_OFFSET
from vllm_glm41v_npu.processing.pixel_settings import ImageSettings

PATCH_EMBED = f"{NETWORK.vision}patch_embed."
DOWNSAMPLE = f"{NETWORK.vision}downsample.weight"

Named = tuple[str, torch.Tensor]


class WeightError(ValueError):
    """A tensor of the checkpoint is missing, unknown, or of the wrong shape."""


@dataclass(frozen=True)
class Layout:
    """A checkpoint's contents, and how its tensors are to be laid out.

    config: the checkpoint's config.
    settings: how its pictures are normalised.
    quantized: layers may have other tensors than a float checkpoint's; vLLM's quantization methods
        check those.
    awq: the checkpoint is AWQ's, whose packed channels have an order of their own.
    """

    config: Any
    settings: ImageSettings
    quantized: bool = False
    awq: bool = False

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Name in the network to shape on disk of every tensor of a float checkpoint."""
        return checkpoint_shapes(self.config)

    @cached_property
    def parts(self) -> dict[str, Shape]:
        """The same for the parts of layers that are one in the published checkpoint."""
        return part_shapes(self.shapes)


def convert(
    stream: Iterable[Named],
    layout: Layout,
    whole: bool = True,
    patch_embed: dict[str, torch.Tensor] | None = None,
) -> Iterator[Named]:
    """Yield the tensors of a stream by their names and in their layouts in the network.

    Args:
        stream: Names on disk and tensors, of either naming.
        layout: What they have to be.
        whole: The stream must hold the whole checkpoint; else any part of it.
        patch_embed: Weight and bias of the patch embedding as they were last seen. The two are
            folded together, and an update may bring one alone: the caller keeps the mapping.

    Raises:
        WeightError: A tensor is unknown, misshapen, or missing; the last is known at the end.
    """
    patch_embed = {} if patch_embed is None else patch_embed
    twins: dict[str, torch.Tensor] = {}
    seen: set[str] = set()
    naming, patches = NEWER, False
    for on_disk, name, tensor in _in_network(stream):
        if is_older(on_disk):
            naming = OLDER
        if layout.config.tie_word_embeddings and name in (HEAD, EMBEDDING):
            twins[name] = tensor
            if name == HEAD:
                continue
        _check(layout, on_disk, name, tensor)
        seen.add(name)
        if name.startswith(f"{PATCH_EMBED}proj."):
            patch_embed[name], patches = tensor.clone(), True
        else:
            yield name, _laid_out(layout, on_disk, name, tensor)
    if patches:  # at the end, as weight and bias belong together and vLLM's reload takes each once
        yield from _patch_embed(layout, patch_embed)
    _check_twins(twins)
    if whole:
        _require_all(layout, seen, naming)


def _in_network(stream: Iterable[Named]) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yield the name on disk, the name in the network, and the tensor.

    In the form for MindIE a norm is there twice, and the wrapped one is what was computed: it is
    the last of its name, whichever comes first.
    """
    wrapped = set()
    for on_disk, tensor in stream:
        if on_disk.endswith(COMPUTED_SUFFIXES):
            continue
        name = network_name(on_disk)
        if is_wrapped(on_disk):
            wrapped.add(name)
        elif name in wrapped:
            continue
        yield on_disk, name, tensor


def _check(layout: Layout, on_disk: str, name: str, tensor: torch.Tensor) -> None:
    """Raise WeightError where a tensor is unknown or misshapen."""
    shape = layout.shapes.get(name) or layout.parts.get(name)
    found = tuple(tensor.shape)
    if found == shape or layout.quantized:
        return
    if shape is None:
        raise WeightError(
            f"The checkpoint holds {on_disk!r} of shape {list(found)}, which GLM-4.1V with this "
            "config.json does not have. Check that the weights and the config belong together."
        )
    raise WeightError(
        f"The checkpoint's {on_disk!r} has shape {list(found)}; config.json demands "
        f"{list(shape)}. Check that the two belong together."
    )


def _laid_out(layout: Layout, on_disk: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in the network's layout; see `_patch_embed` for that layer's."""
    layer, suffix = split_name(name)
    if layer.startswith(NETWORK.text) and last_part(layer) in ROTARY_PARTS:
        return _reordered(layout, on_disk, layer, suffix, tensor)
    if name == DOWNSAMPLE:
        # [out, C, m, m] -> [out, m * m * C]: the patches of a merged token, channels last
        return tensor.permute(0, 2, 3, 1).flatten(1)
    return tensor


def _reordered(
    layout: Layout, on_disk: str, layer: str, suffix: str, tensor: torch.Tensor
) -> torch.Tensor:
    """Return a tensor of q or k, quantized or not, with its rows in half form."""
    rows = layout.shapes[f"{layer}.weight"][0]
    text = layout.config.text_config
    head_dim = head_size(text)
    reorder = partial(deinterleave, head_dim=head_dim, rotated=rotary_dim(text))
    try:
        return reorder_channels(suffix, tensor, rows, head_dim, reorder, layout.awq)
    except LayoutError as error:
        raise WeightError(
            f"The checkpoint's {on_disk!r} of shape {list(tensor.shape)} has a layout that is not "
            f"known: the {rows} output channels of its layer are to be reordered for the rotary "
            "embedding. Use a checkpoint in another format; docs/quantize.md lists those that load."
        ) from error


def _patch_embed(layout: Layout, found: dict[str, torch.Tensor]) -> Iterator[Named]:
    """Yield the three tensors of the patch embedding, once its two on disk have been seen."""
    pair = [found.get(f"{PATCH_EMBED}proj.{suffix}") for suffix in ("weight", "bias")]
    weight, bias = pair
    if weight is not None and bias is not None:
        for part, value in fold_patch_embed(weight, bias, layout.settings).items():
            yield PATCH_EMBED + part, value


def fold_patch_embed(
    weight: torch.Tensor, bias: torch.Tensor, settings: ImageSettings
) -> dict[str, torch.Tensor]:
    """Fold the normalisation of pixels into the patch embedding.

    transformers computes `sum over frames t of weight_t . (pixel_t * rescale - mean) / std + bias`.
    With `motion` the second frame's weight, folded, and `proj` the sum of both, the same value is
    `proj . (pixel_0 - PIXEL_OFFSET) + motion . (pixel_1 - pixel_0) + shifted bias`: of a still
    picture, whose frames are equal, only the first product. Computed in float64.

    Args:
        weight: [hidden, channels, 2, patch, patch].
        bias: [hidden].
        settings: The checkpoint's rescale factor, and mean and standard deviation per channel.

    Returns:
        float32 `proj.weight` and `motion.weight` [hidden, patch^2 * channels], and `proj.bias`
        [hidden].
    """
    channels = (1, -1, 1, 1)
    rescale = settings.rescale_factor
    mean = weight.new_tensor(settings.mean, dtype=torch.float64).view(channels)
    std = weight.new_tensor(settings.std, dtype=torch.float64).view(channels)
    second = weight[:, :, 1].double() / std  # [hidden, channels, patch, patch]
    both = weight[:, :, 0].double() / std + second
    shifted = bias.double() + (both * (PIXEL_OFFSET * rescale - mean)).flatten(1).sum(1)
    folded = {"proj.weight": both * rescale, "motion.weight": second * rescale}
    # [hidden, channels, patch, patch] -> [hidden, patch, patch, channels], as the pixels come
    rows = {name: value.permute(0, 2, 3, 1).flatten(1) for name, value in folded.items()}
    return {name: value.float() for name, value in (rows | {"proj.bias": shifted}).items()}


def _check_twins(found: dict[str, torch.Tensor]) -> None:
    """Raise WeightError where the output projection beside a tied embedding is no copy of it."""
    if not {HEAD, EMBEDDING} <= found.keys():
        return
    head, embedding = found[HEAD], found[EMBEDDING]
    if head.shape != embedding.shape or not torch.equal(head, embedding.to(head.dtype)):
        raise WeightError(
            "The checkpoint's 'lm_head.weight' differs from its embedding, but its config.json "
            "ties the two (tie_word_embeddings). Set tie_word_embeddings to false if the output "
            "projection was trained, or remove it."
        )


def _require_all(layout: Layout, seen: set[str], naming: Naming) -> None:
    """Raise WeightError where tensors were not seen; `naming` is for the message."""
    layers = {split_name(name)[0] for name in seen} if layout.quantized else set()
    missing = {
        name: shape
        for name, shape in _expected(layout, seen).items()
        if name not in seen and split_name(name)[0] not in layers
    }
    if not missing:
        return
    listed = ", ".join(
        f"{disk_name(name, naming)!r} {list(missing[name])}" for name in sorted(missing)[:8]
    )
    more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
    raise WeightError(
        f"The checkpoint lacks {len(missing)} of {len(layout.shapes)} tensors: {listed}{more}. "
        "Download it again, or check that config.json belongs to it."
    )


def _expected(layout: Layout, seen: set[str]) -> dict[str, Shape]:
    """Return what the checkpoint must hold: parts of a layer where it holds one of them."""
    found = {split_name(name)[0] for name in seen}
    fused = {fused_tensor(name) for name in layout.parts if split_name(name)[0] in found}
    parts = {name: shape for name, shape in layout.parts.items() if fused_tensor(name) in fused}
    return {name: shape for name, shape in layout.shapes.items() if name not in fused} | parts
