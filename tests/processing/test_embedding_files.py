# SPDX-License-Identifier: Apache-2.0
"""Embeddings that come in a request: what is no tensor, and what no vision tower made."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
import torch

from vllm_glm41v_npu.models.glm41v import Glm41vForConditionalGeneration
from vllm_glm41v_npu.processing.embeddings import parse_embeddings, read_embedding
from vllm_glm41v_npu.processing.grid import PatchGeometry

GRID = torch.tensor([[1, 4, 6]])


def saved(value: Any) -> str:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def test_tensors() -> None:
    """Guards both forms of a file."""
    tensor = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(read_embedding(saved(tensor)), tensor)
    buffer = io.BytesIO()
    np.save(buffer, tensor.numpy())
    assert torch.equal(read_embedding(base64.b64encode(buffer.getvalue()).decode()), tensor)


@pytest.mark.parametrize("medium", ["image", "video"])
def test_place_in_a_chat(medium: str) -> None:
    """Guards embeddings in a chat: they were refused as if they were neither."""
    place = Glm41vForConditionalGeneration.get_placeholder_str
    assert place(f"{medium}_embeds", 1) == place(medium, 1)
    with pytest.raises(ValueError, match="takes pictures and videos, not 'audio'"):
        place("audio", 1)


BAD = {
    "no base64": "!!",
    "text": base64.b64encode(b"this is text").decode(),
    "empty": "",
    "cut off": saved(torch.zeros(4, 4))[:200],
    "a dictionary": saved({"a": torch.zeros(2)}),
    "a list": saved([1, 2]),
    "code": saved(PatchGeometry),
    "numpy, cut off": base64.b64encode(b"\x93NUMPY\x01\x00").decode(),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_no_tensor(name: str) -> None:
    """Guards against 500, and against words about pickles."""
    with pytest.raises(ValueError, match="which is no tensor .*; expected base64 of what torch.sa"):
        read_embedding(BAD[name])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_no_tower_writes(value: float) -> None:
    """Guards answers about nothing: a NaN goes through the whole network without a word."""
    embeds = torch.zeros(6, 8)
    embeds[3, 2] = value
    data = {"image_embeds": embeds, "image_grid_thw": GRID}
    with pytest.raises(ValueError, match="image_embeds has values that are infinite or no numbers"):
        parse_embeddings("image", data, PatchGeometry(), 8)


@pytest.mark.parametrize("value", ["QUJD", None, object()])
def test_what_is_no_tensor(value: Any) -> None:
    """Guards offline use with something else."""
    data = {"image_embeds": value, "image_grid_thw": GRID}
    with pytest.raises(ValueError, match="^image_embeds is .*; expected a tensor, or numbers"):
        parse_embeddings("image", data, PatchGeometry(), 8)


def test_a_grid_of_very_many() -> None:
    """Guards a refusal that is longer than its request."""
    data = {"image_embeds": torch.zeros(6, 8), "image_grid_thw": torch.zeros(9999, 3).long()}
    with pytest.raises(ValueError, match="image_grid_thw is ") as refusal:
        parse_embeddings("image", data, PatchGeometry(), 8)
    assert len(str(refusal.value)) < 300
