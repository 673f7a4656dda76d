# SPDX-License-Identifier: Apache-2.0
"""The tensors of one W8A8SC weight, whichever codec filled them.

`weight` holds the compressed stream, `index` eight bytes for each block of BLOCK_K x BLOCK_N
weights, and `info` what `npu_matmul_compress_dequant` has to know. Names and sizes are those of
vllm-ascend's scheme (_310p/quantization/methods/w8a8sc.py) and of msModelSlim's compressor
(pytorch/weight_compression/compress_tools.py). docs/w8a8sc.md has all of it to the byte.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch

BLOCK_K, BLOCK_N = 256, 128
"""Input and output channels of a block: 8 x 8 of the chip's 32 x 16 fractals."""

INDEX_BYTES = 8
TILING = 8
"""Fractals of a block in either direction; the only value that the operator takes."""

PARTS = ("weight", "index", "info")


class ContainerError(ValueError):
    """A compressed tensor is damaged, or is none; the message names it."""


@dataclass(frozen=True)
class Compressed:
    """One compressed weight.

    weight: int8 [c], with 0 < c <= N * K.
    index: int8 [8 * ceil(K / 256) * ceil(N / 128)]; blocks of one n follow each other.
    info: int64 [5], which are 8, 8, K, N and 1 (n is the outer direction).
    """

    weight: torch.Tensor
    index: torch.Tensor
    info: torch.Tensor

    @property
    def nbytes(self) -> int:
        return sum(getattr(self, field.name).nbytes for field in fields(self))


@dataclass(frozen=True)
class Checksum:
    """CRC32 of the three tensors as stored, one after the other, and of the weight [N, K]."""

    stored: int
    decoded: int

    @classmethod
    def of(cls, compressed: Compressed, weight: torch.Tensor) -> Checksum:
        return cls(stored_crc(compressed), crc(weight))

    @classmethod
    def from_json(cls, value: Any) -> Checksum:
        """Return the checksum that `to_json` has written."""
        return cls(int(value["stored"], 16), int(value["decoded"], 16))

    def to_json(self) -> dict[str, str]:
        """Return both as eight hexadecimal digits."""
        return {"stored": f"{self.stored:08x}", "decoded": f"{self.decoded:08x}"}


def crc(tensor: torch.Tensor, start: int = 0) -> int:
    """Return the CRC32 of the tensor's bytes, going on from `start`."""
    return zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy().data, start)


def stored_crc(compressed: Compressed) -> int:
    value = 0
    for part in PARTS:
        value = crc(getattr(compressed, part), value)
    return value


def index_length(n: int, k: int) -> int:
    """Return the bytes of the index of a weight [n, k]."""
    return INDEX_BYTES * -(-k // BLOCK_K) * -(-n // BLOCK_N)


def make_info(n: int, k: int) -> torch.Tensor:
    return torch.tensor([TILING, TILING, k, n, 1], dtype=torch.int64)


def blocks(n: int, k: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of each block of a weight [n, k], in the order of the index."""
    for row in range(0, n, BLOCK_N):
        for column in range(0, k, BLOCK_K):
            yield (
                slice(row, min(row + BLOCK_N, n)),
                slice(column, min(column + BLOCK_K, k)),
            )


def check_container(name: str, compressed: Compressed) -> tuple[int, int]:
    """Return (N, K) of the weight called `name`, whose three tensors fit each other.

    Raises:
        ContainerError: They do not.
    """
    _check_tensor(f"{name}.info", compressed.info, torch.int64, 5)
    tiling_k, tiling_n, k, n, order = compressed.info.tolist()
    if (tiling_k, tiling_n, order) != (TILING, TILING, 1) or k <= 0 or n <= 0:
        raise ContainerError(
            f"{name}.info holds {compressed.info.tolist()}; expected {TILING}, {TILING}, the input "
            f"channels, the output channels and 1. {AGAIN}"
        )
    _check_tensor(f"{name}.index", compressed.index, torch.int8, index_length(n, k))
    _check_tensor(f"{name}.weight", compressed.weight, torch.int8, None)
    if not 0 < compressed.weight.numel() <= n * k:
        raise ContainerError(
            f"{name}.weight has {compressed.weight.numel()} bytes; a compressed weight of "
            f"{n} x {k} has at least 1 and at most {n * k}. {AGAIN}"
        )
    return n, k


AGAIN = "Copy the shard again, or compress the W8A8S checkpoint again."


def _check_tensor(name: str, tensor: torch.Tensor, dtype: torch.dtype, size: int | None) -> None:
    wanted = "any length" if size is None else f"length {size}"
    if tensor.dtype != dtype or tensor.dim() != 1 or size not in (None, tensor.numel()):
        raise ContainerError(
            f"{name} is {tensor.dtype} {list(tensor.shape)}; expected {dtype} of one dimension "
            f"and {wanted}. {AGAIN}"
        )


def check_stored(name: str, compressed: Compressed, checksum: Checksum) -> None:
    """Raise ContainerError where the three tensors are not those that were written."""
    found = stored_crc(compressed)
    if found != checksum.stored:
        raise ContainerError(
            f"{name} is damaged: its compressed tensors have the CRC32 {found:08x}, and had "
            f"{checksum.stored:08x} when they were written. {AGAIN}"
        )


def check_decoded(name: str, weight: torch.Tensor, checksum: Checksum) -> None:
    """Raise ContainerError where the decoded weight [N, K] is not the one that was encoded."""
    found = crc(weight)
    if found != checksum.decoded:
        raise ContainerError(
            f"{name} is damaged: its decoded weight has the CRC32 {found:08x}, and the original "
            f"{checksum.decoded:08x}. {AGAIN}"
        )
