# SPDX-License-Identifier: Apache-2.0
"""Which keys a query may look at."""

from __future__ import annotations

import torch
from torch import Tensor

COMPRESSED = 2048  # rows and columns of a compressed causal mask
FAR = 2147483647  # the default of a window's reach: no limit


def causal_mask(rows: int, columns: int) -> Tensor:
    """True where a query may look, the last query and the last key at the same position."""
    return torch.ones(rows, columns, dtype=torch.bool).tril_(columns - rows)


def _band(rows: int, columns: int, offset: int, before: int, after: int) -> Tensor:
    """True up to `before` keys behind and `after` keys ahead of query i, placed at i + offset."""
    distance = torch.arange(columns) - torch.arange(offset, offset + rows).unsqueeze(1)
    return (distance >= -before).logical_and_(distance <= after)


def visible(
    sparse_mode: int,
    mask: Tensor | None,
    batch: int,
    shape: tuple[int, int],
    window: tuple[int, int],
) -> Tensor | None:
    """Where queries may look, by the operator's table of sparse modes (3 is left to `attend`)."""
    rows, columns = shape
    if sparse_mode in (0, 1):
        if mask is None:
            return None
        # (B or 1, 1, rows, columns), (B or 1, rows, columns), or (rows, columns)
        whole = mask if mask.dim() == 2 else mask[batch if mask.shape[0] > 1 else 0]
        seen = whole.reshape(-1, whole.shape[-1])[:rows, :columns].logical_not()
        if sparse_mode == 0 and rows > 1 and window != (FAR, FAR):
            seen = seen.logical_and_(_band(rows, columns, 0, *window))
        return seen
    if sparse_mode == 2:
        return torch.ones(rows, columns, dtype=torch.bool).tril_()
    if sparse_mode == 4:
        return _band(rows, columns, columns - rows, *window)
    if sparse_mode == 3:
        return None
    raise NotImplementedError(f"sparse_mode {sparse_mode} is supported by no chip.")


def nd_mask(mask: Tensor) -> Tensor:
    """A 2-D view of a mask (rows, columns), (1, rows, columns), or NZ (1, columns/16, rows, 16)."""
    if mask.dim() == 4:
        return mask[0].transpose(0, 1).flatten(1)
    return mask[0] if mask.dim() == 3 else mask


def check_compressed(mask: Tensor) -> None:
    """Raise ValueError unless `mask` hides the upper triangle, as a compressed mask must."""
    shape = mask.shape
    nz = mask.dim() == 4 and shape[-1] == 16
    rows, columns = (shape[2], shape[1] * 16) if nz else (shape[-2], shape[-1])
    if (rows, columns) != (COMPRESSED, COMPRESSED):
        raise ValueError(f"A compressed mask is 2048 x 2048, not {rows} x {columns}.")
    upper = mask[0, -1, 0, -1] if nz else mask[..., 0, -1].flatten()[0]
    lower = mask[0, 0, -1, 0] if nz else mask[..., -1, 0].flatten()[0]
    if not upper or lower:
        raise ValueError("A compressed mask hides the upper triangle; this one does not.")
