# SPDX-License-Identifier: Apache-2.0
"""The position table as two matrix products, against transformers' grid_sample."""

from __future__ import annotations

import pytest
import torch
from transformers import Glm4vVisionConfig
from transformers.models.glm4v.modeling_glm4v import Glm4vVisionEmbeddings

from vllm_glm41v_npu.models.position_embedding import VisionEmbeddings, bicubic_matrix
from vllm_glm41v_npu.models.rope import merge_order


def reference(theirs: Glm4vVisionEmbeddings, grids: list[list[int]]) -> torch.Tensor:
    coords = []
    for t, h, w in grids:
        row, col = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        coords.append(merge_order(torch.stack((row, col), dim=-1), 2).repeat(t, 1))
    ids = torch.cat(coords)
    shapes, lengths = [], []
    for t, h, w in grids:  # one entry a frame, as the attention counts them
        shapes += [[t, h, w]] * t
        lengths += [h * w] * t
    zeros = torch.zeros(len(ids), theirs.embed_dim)
    return theirs(zeros, lengths, torch.tensor(shapes), ids[:, 0], ids[:, 1])


@pytest.mark.parametrize("side", [4, 24])
@pytest.mark.parametrize(
    "grids",
    [
        [[1, 24, 24]],
        [[1, 2, 2]],
        [[1, 74, 74]],
        [[1, 2, 400]],
        [[1, 16, 10], [1, 6, 30], [1, 2, 4]],
        [[2, 4, 6], [3, 8, 2]],
    ],
)
def test_equals_grid_sample(side: int, grids: list[list[int]]) -> None:
    """Guards the interpolation at every size, and batches of different sizes (a fault upstream)."""
    config = Glm4vVisionConfig(image_size=14 * side, hidden_size=32, num_heads=2)
    theirs = Glm4vVisionEmbeddings(config)
    ours = VisionEmbeddings(side, 32, merge=2)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(grids), reference(theirs, grids), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("out_size", "in_size"), [(24, 24), (7, 24), (100, 24), (2, 4)])
def test_every_row_sums_to_one(out_size: int, in_size: int) -> None:
    """Guards the edges, where taps fall outside and are moved onto the border."""
    rows = bicubic_matrix(out_size, in_size).sum(1)
    torch.testing.assert_close(rows, torch.ones(out_size))


def test_the_same_size_is_the_table_itself() -> None:
    """Guards the alignment of pixel centres."""
    torch.testing.assert_close(bicubic_matrix(24, 24), torch.eye(24), atol=1e-6, rtol=0)
