# SPDX-License-Identifier: Apache-2.0
"""The pictures and videos of a request, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import (
    ImageProcessorItems,
    ModalityDataItems,
    MultiModalDataParser,
    VideoProcessorItems,
)

from vllm_glm41v_npu.processing.embeddings import parse_embeddings
from vllm_glm41v_npu.processing.encoded_video import EncodedVideo
from vllm_glm41v_npu.processing.frames import check_frames, stack_frames
from vllm_glm41v_npu.processing.grid import PatchGeometry
from vllm_glm41v_npu.processing.image import open_picture
from vllm_glm41v_npu.processing.video import DecodedVideo

Video = DecodedVideo | EncodedVideo


class Glm41vDataParser(MultiModalDataParser):
    """Turns the ``image`` and ``video`` of a request into items.

    A picture is PIL, numpy or torch, see `open_picture`. A video is

    - the bytes or the path of a file, or the `EncodedVideo` that our loader makes of one;
    - frames, RGB [frames, height, width, 3] in numpy or torch, or a list of pictures, see
      `check_frames`;
    - such frames with their metadata: (frames, {"fps": ..., ...}), see `DecodedVideo`.

    Either may be one, several of them, ``None`` for one that the cache holds already, or a
    dictionary of embeddings, see `parse_embeddings`.

    Pictures are opened here and not later, because vLLM hashes items right after parsing: hashing
    would decode a damaged file first, and ignores the EXIF orientation.
    """

    def __init__(self, geometry: PatchGeometry, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.geometry = geometry

    @classmethod
    def is_embeddings(cls, data: object) -> bool:
        """Return False: embeddings come in a dictionary, and a uint8 tensor is a picture."""
        return False

    def _parse_image_data(self, data: Any) -> ModalityDataItems[Any, Any] | None:
        if isinstance(data, Mapping):
            return parse_embeddings("image", data, self.geometry, self.expected_hidden_size)
        is_several = isinstance(data, (list, tuple)) or (_is_array(data) and data.ndim == 4)
        if data is not None and not is_several:
            data = [data]  # the parent would take rows of an array, letters of a path for pictures
        items = super()._parse_image_data(data)
        if items is None:
            return None
        assert isinstance(items, ImageProcessorItems)
        total = len(items)
        return ImageProcessorItems(
            [_open_item(item, idx, total) for idx, item in enumerate(items.data, start=1)]
        )

    def _parse_video_data(self, data: Any) -> ModalityDataItems[Any, Any] | None:
        if data is None:
            return None
        if isinstance(data, Mapping):
            return parse_embeddings("video", data, self.geometry, self.expected_hidden_size)
        videos = [data] if _is_one_video(data) else list(data)
        names = [f"Video {number} of {len(videos)}" for number in range(1, len(videos) + 1)]
        return VideoProcessorItems([_open_video(*pair) for pair in zip(videos, names, strict=True)])


def _open_item(item: Any, number: int, total: int) -> Any:
    """Open a picture, also in vLLM's wrapper, which carries the file's bytes for hashing."""
    name = f"Picture {number} of {total}"
    if item is None:
        return None
    if isinstance(item, MediaWithBytes):
        return MediaWithBytes(open_picture(item.media, name), item.original_bytes)
    return open_picture(item, name)


def _is_array(data: object) -> bool:
    return isinstance(data, (np.ndarray, torch.Tensor))


def _is_frame(data: Any) -> bool:
    return isinstance(data, (Image.Image, MediaWithBytes)) or (_is_array(data) and data.ndim == 3)


def _is_one_video(data: Any) -> bool:
    """Return True for a file, frames, or frames with metadata, and False for a list of videos."""
    if isinstance(data, (bytes, Path, DecodedVideo, EncodedVideo)):
        return True
    if _is_array(data):
        return data.ndim != 5
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Mapping):
        return True
    return isinstance(data, Sequence) and len(data) > 0 and all(map(_is_frame, data))


def _open_video(data: Any, name: str) -> Video | None:
    if data is None:
        return None
    if isinstance(data, (DecodedVideo, EncodedVideo)):
        data.name = name
        return data
    if isinstance(data, Path):
        data = _read(data, name)
    if isinstance(data, bytes):
        return EncodedVideo(data, name=name)
    frames, metadata = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
    if isinstance(frames, (list, tuple)) and frames and all(map(_is_frame, frames)):
        frames = stack_frames([_open_frame(frame, f"A frame of {name}") for frame in frames], name)
    if not _is_array(frames) or not isinstance(metadata, (Mapping, type(None))):
        raise ValueError(
            f"{name} is a {type(frames).__name__}"
            + ("" if metadata is None else f" with a {type(metadata).__name__}")
            + "; expected frames as an array or a list of pictures, such frames with a dictionary "
            "of metadata, or the bytes or pathlib.Path of a video file."
        )
    return DecodedVideo(check_frames(frames, name), metadata or {}, name)


def _read(path: Path, name: str) -> bytes:
    if not path.is_file():  # reading a pipe would never end
        raise ValueError(f"{name} is {path}, where there is no file. Give the path of a video.")
    return path.read_bytes()


def _open_frame(frame: Any, name: str) -> Any:
    """Open a frame that is a picture; arrays are checked when all are together."""
    frame = frame.media if isinstance(frame, MediaWithBytes) else frame
    return frame if _is_array(frame) else open_picture(frame, name)
