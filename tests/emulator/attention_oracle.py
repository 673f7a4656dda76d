# SPDX-License-Identifier: Apache-2.0
"""Attention in float64, one query and one head at a time, and caches filled slot by slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Seen = Callable[[int, int], float]  # (query, key) -> 0 to look, -inf or a number to add

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 0.0}


def everything(_: int, __: int) -> float:
    return 0.0


def causal(rows: int, columns: int) -> Seen:
    """Query i is the token columns - rows + i."""
    return lambda i, j: 0.0 if j <= columns - rows + i else -torch.inf


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float, seen: Seen) -> Tensor:
    """(rows, heads, dim) of each; in float64."""
    rows, heads, _ = query.shape
    group = heads // key.shape[1]
    out = torch.zeros(rows, heads, value.shape[-1], dtype=torch.float64)
    for i in range(rows):
        bias = torch.tensor([seen(i, j) for j in range(key.shape[0])], dtype=torch.float64)
        if bool((bias == -torch.inf).all()):
            continue
        for h in range(heads):
            scores = (key[:, h // group].double() * query[i, h].double()).sum(-1) * scale + bias
            weights = (scores - scores.max()).exp()
            out[i, h] = (weights.unsqueeze(-1) * value[:, h // group].double()).sum(0)
            out[i, h] /= weights.sum()
    return out


def assert_rounded_once(result: Tensor, expected: Tensor, slack: float = 1e-5) -> None:
    """`result` is the float64 `expected`, rounded once to its dtype from float32 arithmetic."""
    rtol = ROUNDING[result.dtype] * 1.01 + slack
    torch.testing.assert_close(result.double(), expected, rtol=rtol, atol=slack)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def parts(x: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """The tokens of each sequence, without those after the last."""
    return list(x[: sum(lengths)].split(list(lengths)))


class Pages:
    """A cache for some sequences in shuffled blocks, in each of the orders a chip may want."""

    def __init__(self, lengths: Sequence[int], size: int, rows: Sequence[Tensor]) -> None:
        self.size = size
        widest = max(-(-length // size) for length in lengths)
        blocks = len(lengths) * widest + 1
        order = torch.randperm(blocks, generator=torch.Generator().manual_seed(5))
        self.table = order[: len(lengths) * widest].view(len(lengths), widest).int()
        heads, dim = rows[0].shape[1:]
        # What no sequence holds must never be read: it is NaN.
        self.nd = torch.full((blocks, size, heads, dim), torch.nan, dtype=rows[0].dtype)
        for i, sequence in enumerate(rows):
            for j, row in enumerate(sequence):
                self.nd[self.table[i, j // size], j % size] = row

    def slots(self, lengths: Sequence[int]) -> list[int]:
        return [
            int(self.table[i, j // self.size]) * self.size + j % self.size
            for i, length in enumerate(lengths)
            for j in range(length)
        ]

    @property
    def nz(self) -> Tensor:
        """(blocks, heads * dim / 16, size, 16)"""
        blocks, size, heads, dim = self.nd.shape
        return self.nd.reshape(blocks, size, heads * dim // 16, 16).transpose(1, 2).contiguous()
