# SPDX-License-Identifier: Apache-2.0
"""What a request may carry as pictures, and how it is checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import (
    DictEmbeddingItems,
    ImageProcessorItems,
    ModalityDataItems,
    MultiModalDataParser,
)

from .grid import PatchGeometry
from .image import open_picture

EMBEDDING_FIELDS = {"image_embeds", "image_grid_thw"}


def image_fields(
    data: Mapping[str, torch.Tensor], geometry: PatchGeometry
) -> Mapping[str, MultiModalFieldConfig]:
    """How the tensors of several pictures are cut into one item per picture.

    ``pixel_values`` has a row for each patch, ``image_embeds`` one for each token, and
    ``image_grid_thw`` one for each picture.
    """
    # The chat API hands over [n, 1, 3] when each picture came with its own [1, 3].
    grids = data.get("image_grid_thw", torch.empty(0, 3, dtype=torch.int64)).reshape(-1, 3)
    num_patches = grids.prod(dim=-1)
    return {
        "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", num_patches),
        "image_embeds": MultiModalFieldConfig.flat_from_sizes(
            "image", num_patches // geometry.merge_size**2
        ),
        "image_grid_thw": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
    }


class Glm41vDataParser(MultiModalDataParser):
    """Turns the ``image`` of a request into items.

    Accepts a picture (PIL, numpy or torch; see `open_picture`), several of them, ``None`` for one
    that the cache holds already, or a dictionary of ``image_embeds`` [tokens, hidden] and
    ``image_grid_thw`` [pictures, 3].

    Pictures are opened here and not later, because vLLM hashes items right after parsing: hashing
    would decode a damaged file first, and tells no EXIF orientations apart.
    """

    def __init__(self, geometry: PatchGeometry, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.geometry = geometry

    @classmethod
    def is_embeddings(cls, data: object) -> bool:
        """Never: embeddings come in a dictionary, and a uint8 tensor is a picture."""
        return False

    def _parse_image_data(self, data: Any) -> ModalityDataItems[Any, Any] | None:
        if isinstance(data, Mapping):
            return self._parse_embeddings(data)
        if isinstance(data, (np.ndarray, torch.Tensor)) and data.ndim != 4:
            data = [data]  # one picture; the parent would take a 2-D array for a list of rows
        items = super()._parse_image_data(data)
        if items is None:
            return None
        assert isinstance(items, ImageProcessorItems)
        total = len(items)
        return ImageProcessorItems(
            [_open_item(item, idx, total) for idx, item in enumerate(items.data, start=1)]
        )

    def _parse_embeddings(self, data: Mapping[str, Any]) -> DictEmbeddingItems:
        """
        Raises:
            ValueError: a missing tensor, or shapes that do not go together.
        """
        if data.keys() != EMBEDDING_FIELDS:
            raise ValueError(
                f"The image embeddings have the keys {sorted(data)}; expected "
                f"{sorted(EMBEDDING_FIELDS)}. Give both, and nothing else."
            )
        grids = _checked_grids(torch.as_tensor(data["image_grid_thw"]), self.geometry)
        embeds = torch.as_tensor(data["image_embeds"])
        rows = sum(self.geometry.num_tokens(grid) for grid in grids.tolist())
        hidden = self.expected_hidden_size
        if (
            embeds.ndim != 2
            or embeds.shape[0] != rows
            or (hidden is not None and embeds.shape[1] != hidden)
            or not embeds.is_floating_point()
        ):
            dtype = str(embeds.dtype).removeprefix("torch.")
            raise ValueError(
                f"image_embeds is {dtype} of shape {list(embeds.shape)}; expected floating point "
                f"of shape [{rows}, {hidden or 'hidden_size'}], where {rows} is t * h * w / "
                f"{self.geometry.merge_size**2} summed over the rows of image_grid_thw. Give the "
                "output of the vision tower and the grid it was made with."
            )
        return DictEmbeddingItems(
            {"image_embeds": embeds, "image_grid_thw": grids},
            modality="image",
            required_fields=EMBEDDING_FIELDS,
            fields_factory=lambda tensors: image_fields(tensors, self.geometry),
        )


def _open_item(item: Any, number: int, total: int) -> Any:
    """`open_picture` under vLLM's wrapper, which carries the file's bytes for hashing."""
    name = f"Picture {number} of {total}"
    if item is None:
        return None
    if isinstance(item, MediaWithBytes):
        return MediaWithBytes(open_picture(item.media, name), item.original_bytes)
    return open_picture(item, name)


def _checked_grids(grids: torch.Tensor, geometry: PatchGeometry) -> torch.Tensor:
    """int64 [pictures, 3], rows (1, h, w) with h and w multiples of the merge size."""
    merge = geometry.merge_size
    shape_is_right = grids.shape[-1:] == (3,) and not grids.is_floating_point()
    if (
        not shape_is_right
        or (grids < 1).any()
        or (grids[..., 0] != 1).any()
        or (grids[..., 1:] % merge != 0).any()
    ):
        raise ValueError(
            f"image_grid_thw is {grids.tolist()}; expected whole numbers of shape [pictures, 3], "
            f"each row (1, h, w) in patches with h and w multiples of {merge}. Give the grid the "
            "embeddings were made with."
        )
    return grids.reshape(-1, 3).to(torch.int64)
