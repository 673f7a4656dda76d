# SPDX-License-Identifier: Apache-2.0
"""The open codec: raw DEFLATE (RFC 1951) with Huffman codes alone, one stream for each block.

Quantized weights have no repetitions that a dictionary could use, only values that are more
frequent than others, so Huffman codes without matches come within 1 to 2 % of a block's entropy.
zlib has them in Python's standard library, and runs without the interpreter's lock.

An entry of the index is one unsigned little-endian integer of 64 bits: the lower OFFSET_BITS are
the place of the block's bytes in the stream, the rest their number. Blocks follow each other
without gaps. A block that would not shrink is stored as it is: its number of bytes says so.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from vllm_glm41v_npu.quant.w8a8sc.container import (
    AGAIN,
    Checksum,
    Compressed,
    ContainerError,
    blocks,
    check_container,
    check_decoded,
    check_stored,
    make_info,
)

OFFSET_BITS = 40
INDEX_DTYPE = np.dtype("<u8")
RAW_DEFLATE = -15
"""zlib's `wbits`: a window of 32 KiB, a whole block; no header, no checksum of its own."""


def encode(weight: torch.Tensor) -> Compressed:
    """Compress an int8 weight [N, K]; nothing is lost.

    Raises:
        ValueError: The weight is not int8 of two dimensions with at least one element.
    """
    if weight.dtype != torch.int8 or weight.dim() != 2 or weight.numel() == 0:
        raise ValueError(
            f"Only int8 weights [output channels, input channels] are compressed; found "
            f"{weight.dtype} {list(weight.shape)}."
        )
    n, k = weight.shape
    array = weight.numpy()
    packed = _parallel(lambda place: _pack(array[place]), blocks(n, k))
    sizes = np.array([len(piece) for piece in packed], dtype=INDEX_DTYPE)
    offsets = np.cumsum(sizes) - sizes
    entries = (sizes << np.uint64(OFFSET_BITS)) | offsets
    stream = np.frombuffer(bytearray(b"".join(packed)), dtype=np.int8)
    return Compressed(
        torch.from_numpy(stream),
        torch.from_numpy(entries.astype(INDEX_DTYPE).view(np.int8)),
        make_info(n, k),
    )


def decode(name: str, compressed: Compressed, checksum: Checksum) -> torch.Tensor:
    """Return the int8 weight [N, K] that `encode` was given.

    Args:
        name: What messages call it, with no suffix.
        compressed: The three tensors.
        checksum: What they and the weight have to come to.

    Raises:
        ContainerError: Any of it is damaged. A wrong weight is never returned.
    """
    n, k = check_container(name, compressed)
    check_stored(name, compressed, checksum)
    entries = compressed.index.numpy().view(INDEX_DTYPE)
    sizes = (entries >> np.uint64(OFFSET_BITS)).astype(np.int64)
    offsets = (entries & np.uint64((1 << OFFSET_BITS) - 1)).astype(np.int64)
    ends = np.cumsum(sizes)
    stream = compressed.weight.numpy()
    if (offsets != ends - sizes).any() or ends[-1] != stream.size:
        raise ContainerError(
            f"{name}.index does not divide the {stream.size} bytes of {name}.weight into blocks "
            f"that follow each other. {AGAIN}"
        )
    out = np.empty((n, k), dtype=np.int8)

    def fill(task: tuple[tuple[slice, slice], int, int]) -> None:
        place, start, size = task
        target = out[place]
        piece = stream[start : start + size]
        if size < target.size:
            piece = _unpack(name, piece, target.size)
        elif size > target.size:
            raise ContainerError(
                f"{name}.index gives {size} bytes to a block of {target.size} weights. {AGAIN}"
            )
        target[...] = piece.reshape(target.shape)

    _parallel(fill, zip(blocks(n, k), offsets.tolist(), sizes.tolist(), strict=True))
    weight = torch.from_numpy(out)
    check_decoded(name, weight, checksum)
    return weight


def _pack(block: np.ndarray) -> bytes:
    raw = block.tobytes()
    deflate = zlib.compressobj(6, zlib.DEFLATED, RAW_DEFLATE, 9, zlib.Z_HUFFMAN_ONLY)
    packed = deflate.compress(raw) + deflate.flush()
    return packed if len(packed) < len(raw) else raw


def _unpack(name: str, piece: np.ndarray, size: int) -> np.ndarray:
    inflate = zlib.decompressobj(RAW_DEFLATE)
    try:
        raw = inflate.decompress(piece.data, size + 1)
    except zlib.error as error:
        raise ContainerError(f"A block of {name} cannot be decoded ({error}). {AGAIN}") from error
    if len(raw) != size or not inflate.eof or inflate.unused_data:
        raise ContainerError(f"A block of {name} does not decode to its {size} weights. {AGAIN}")
    return np.frombuffer(raw, dtype=np.int8)


def _parallel(function: Callable[[Any], Any], tasks: Iterable[Any]) -> list[Any]:
    """Return `function` of each task, in order, on every core this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(cores) as pool:
        return list(pool.map(function, tasks))


def entropy_bytes(weight: torch.Tensor) -> float:
    """Return the least size that a code without context gives to an int8 weight [N, K], in bytes.

    Order-0 entropy: each block has its own table of frequencies, which costs nothing here.
    """
    array = weight.numpy().view(np.uint8)
    bits = 0.0
    for place in blocks(*weight.shape):
        counts = np.bincount(array[place].ravel(), minlength=256)
        counts = counts[counts > 0]
        bits -= float((counts * np.log2(counts / counts.sum())).sum())
    return bits / 8
