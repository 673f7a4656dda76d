# SPDX-License-Identifier: Apache-2.0
"""Tensors of pictures and videos, cut into items for the engine; embeddings given as inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.media.image import ImageEmbeddingMediaIO
from vllm.multimodal.parse import DictEmbeddingItems

from vllm_glm41v_npu.processing.grid import PatchGeometry

Modality = Literal["image", "video"]

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
TIMESTAMPS = "timestamps"


def fields(
    modality: Modality, data: Mapping[str, torch.Tensor], geometry: PatchGeometry
) -> dict[str, MultiModalFieldConfig]:
    """Return the rules by which tensors of several pictures or videos are cut into items.

    ``pixel_values(_videos)`` has a row for each patch, ``image_embeds`` or ``video_embeds`` one
    for each token, ``timestamps`` one for each temporal pair, and ``image_grid_thw`` or
    ``video_grid_thw`` one for each item.
    """
    # The chat API hands over [n, 1, 3] when each came with its own [1, 3].
    no_grid = torch.empty(0, 3, dtype=torch.int64)
    grids = data.get(f"{modality}_grid_thw", no_grid).reshape(-1, 3)
    patches = grids.prod(dim=-1)
    cut = MultiModalFieldConfig.flat_from_sizes
    return {
        PIXELS[modality]: cut(modality, patches),
        f"{modality}_embeds": cut(modality, patches // geometry.merge_size**2),
        f"{modality}_grid_thw": MultiModalFieldConfig.batched(modality, keep_on_cpu=True),
    } | ({TIMESTAMPS: cut(modality, grids[:, 0], keep_on_cpu=True)} if modality == "video" else {})


def parse_embeddings(
    modality: Modality, data: Mapping[str, Any], geometry: PatchGeometry, hidden: int | None
) -> DictEmbeddingItems:
    """Check embeddings that are given instead of pictures or videos, and return them as items.

    Args:
        data: ``image_embeds`` [tokens, hidden] and ``image_grid_thw`` [pictures, 3]; or
            ``video_embeds``, ``video_grid_thw`` [videos, 3], and ``timestamps`` [temporal pairs of
            all videos], the second of each pair.
        hidden: expected, where known.

    Raises:
        ValueError: A tensor is missing, or shapes do not go together.
    """
    embeds_name, grid_name = f"{modality}_embeds", f"{modality}_grid_thw"
    names = {embeds_name, grid_name} | ({TIMESTAMPS} if modality == "video" else set())
    if data.keys() != names:
        raise ValueError(
            f"The {modality} embeddings have the keys {sorted(data)}; expected "
            f"{sorted(names)}. Give all of them, and nothing else."
        )
    tensors = {name: _tensor(name, data[name]) for name in names}
    grids = tensors[grid_name] = _checked_grids(modality, tensors[grid_name], geometry)
    _check_embeds(embeds_name, tensors[embeds_name], grids, geometry, hidden)
    if modality == "video":
        tensors[TIMESTAMPS] = _checked_timestamps(tensors[TIMESTAMPS], grids)
    return DictEmbeddingItems(
        tensors,
        modality=modality,
        required_fields=names,
        fields_factory=lambda given: fields(modality, given, geometry),
    )


def _tensor(name: str, value: Any) -> torch.Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        found = _shortened(repr(value))
        raise ValueError(f"{name} is {found}; expected a tensor, or numbers for one.") from error


def read_embedding(data: str) -> torch.Tensor:
    """Return a tensor of the chat API, of any shape and dtype, from base64.

    Raises:
        ValueError: It is no base64, or holds neither a tensor by `torch.save` nor a `.npy` file.
    """
    try:
        return ImageEmbeddingMediaIO().load_base64("", data)
    except MemoryError:
        raise
    except Exception as error:  # torch.load raises nearly anything about what it did not write
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise VLLMValidationError(
            f"image_embeds holds {_shortened(data)!r}, which is no tensor "
            f"({_shortened(reason)}); expected base64 of what torch.save writes of one tensor, or "
            "of a .npy file. Check whether it was cut off."
        ) from error


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]}..."


def _check_embeds(
    name: str,
    embeds: torch.Tensor,
    grids: torch.Tensor,
    geometry: PatchGeometry,
    hidden: int | None,
) -> None:
    rows = sum(geometry.num_tokens(grid) for grid in grids.tolist())
    if (
        embeds.ndim != 2
        or embeds.shape[0] != rows
        or (hidden is not None and embeds.shape[1] != hidden)
        or not embeds.is_floating_point()
    ):
        dtype = str(embeds.dtype).removeprefix("torch.")
        raise ValueError(
            f"{name} is {dtype} of shape {list(embeds.shape)}; expected floating point "
            f"of shape [{rows}, {hidden or 'hidden_size'}], where {rows} is t * h * w / "
            f"{geometry.merge_size**2} summed over the rows of the grid. Give the "
            "output of the vision tower and the grid it was made with."
        )
    if not embeds.isfinite().all():
        raise ValueError(
            f"{name} has values that are infinite or no numbers; expected the output of the vision "
            "tower. Check how it was computed."
        )


def _checked_grids(
    modality: Modality, grids: torch.Tensor, geometry: PatchGeometry
) -> torch.Tensor:
    """Return int64 [items, 3], rows (t, h, w) with h and w multiples of the merge size."""
    merge = geometry.merge_size
    shape_is_right = grids.shape[-1:] == (3,) and not grids.is_floating_point()
    if (
        not shape_is_right
        or (grids < 1).any()
        or (modality == "image" and (grids[..., 0] != 1).any())
        or (grids[..., 1:] % merge != 0).any()
    ):
        row = "(1, h, w)" if modality == "image" else "(t, h, w)"
        found = _shortened(str(grids.tolist()))
        raise ValueError(
            f"{modality}_grid_thw is {found}; expected whole numbers of shape [items, 3], "
            f"each row {row} in patches with h and w multiples of {merge}. Give the grid the "
            "embeddings were made with."
        )
    return grids.reshape(-1, 3).to(torch.int64)


def _checked_timestamps(timestamps: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
    """Return int64 [temporal pairs]."""
    pairs = int(grids[:, 0].sum())
    if timestamps.is_floating_point() or timestamps.numel() != pairs or (timestamps < 0).any():
        found = _shortened(str(timestamps.tolist()))
        raise ValueError(
            f"timestamps is {found}; expected {pairs} whole seconds, one for each "
            "temporal pair of video_grid_thw (the sum of its first column)."
        )
    return timestamps.reshape(-1).to(torch.int64)
