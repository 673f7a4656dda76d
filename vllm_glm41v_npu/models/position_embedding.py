# SPDX-License-Identifier: Apache-2.0
"""The vision tower's learned position table, resized to each picture's grid.

transformers samples the square table bicubically with `grid_sample`, an operator that Atlas 300I
DUO refuses in that mode. Bicubic interpolation is separable, so two small matrix products give the
same numbers: E = A_h . table . A_w^T.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from vllm_glm41v_npu.models.rope import merge_order

CUBIC_A = -0.75
"""The cubic convolution coefficient of PyTorch's bicubic modes (Keys, 1981)."""


def _cubic_weight(distance: torch.Tensor) -> torch.Tensor:
    """Return Keys' cubic convolution kernel at non-negative `distance`."""
    x, a = distance, CUBIC_A
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def bicubic_matrix(out_size: int, in_size: int) -> torch.Tensor:
    """Return the matrix float32 [out_size, in_size] that resizes a line bicubically.

    Pixel centres are aligned (`align_corners=False`) and the edge pixels are repeated outwards
    (`padding_mode="border"`).
    """
    centre = (torch.arange(out_size, dtype=torch.float64) + 0.5) * in_size / out_size - 0.5
    taps = centre.floor()[:, None] + torch.arange(-1, 3)  # [out_size, 4]
    weight = _cubic_weight((centre[:, None] - taps).abs())
    matrix = torch.zeros(out_size, in_size, dtype=torch.float64)
    matrix.scatter_add_(1, taps.clamp(0, in_size - 1).long(), weight)
    return matrix.float()


@lru_cache(maxsize=256)
def bicubic_matrix_on(device: torch.device, out_size: int, in_size: int) -> torch.Tensor:
    """Return `bicubic_matrix` on a device, copied there once."""
    return bicubic_matrix(out_size, in_size).to(device)


class VisionEmbeddings(nn.Module):
    """Table of side x side positions, interpolated to any grid.

    The table is resized to each picture's own grid, so a batch of different sizes is exact.
    """

    def __init__(self, side: int, hidden_size: int, merge: int) -> None:
        super().__init__()
        self.position_embedding = nn.Embedding(side * side, hidden_size)
        self.side = side
        self.merge = merge

    def forward(self, grid_thw: list[list[int]]) -> torch.Tensor:
        """Return [patches, hidden_size] in the order of the patches and the table's dtype."""
        weight = self.position_embedding.weight
        table = weight.float().view(self.side, self.side, -1)  # [S, S, C]
        return torch.cat([self._resize(table, *grid) for grid in grid_thw]).to(weight.dtype)

    def _resize(self, table: torch.Tensor, t: int, h: int, w: int) -> torch.Tensor:
        rows = bicubic_matrix_on(table.device, h, self.side)
        cols = bicubic_matrix_on(table.device, w, self.side)
        tall = (rows @ table.flatten(1)).view(h, self.side, -1)  # [S, S * C] -> [h, S, C]
        grid = cols @ tall  # [h, w, C]
        return merge_order(grid, self.merge).repeat(t, 1)
