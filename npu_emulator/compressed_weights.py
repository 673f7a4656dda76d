# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the compressed weights of Atlas 310P, whose stream is not published.

Run as a program, it takes the arguments of CANN's `compress_excutor` and fills the same container;
`decode` is what the chip does inside npu_matmul_compress_dequant. The stream itself is ours: each
block of 8 x 8 fractals is a raw DEFLATE stream, or its bytes as they are where that is not smaller.
An entry of the index is a block's place in the stream and its number of bytes, as two uint32.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import numpy as np

FRACTAL_N, FRACTAL_K = 16, 32
TILING = 8
"""Fractals of a block in either direction."""
OPTIONS = ["1", "1", "1", "0", "0"]
"""The only ones that are taken: tight index, k_value, n_value, sparse weights, no other tiling."""
RAW_DEFLATE = -15
ENTRY = np.dtype("<u4")


def _blocks(columns: int, rows: int) -> list[tuple[slice, slice]]:
    """Places in [K / 32, N / 16] fractals, those of one n after each other."""
    return [
        (slice(k, min(k + TILING, columns)), slice(n, min(n + TILING, rows)))
        for n in range(0, rows, TILING)
        for k in range(0, columns, TILING)
    ]


def encode(fractals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stream int8 [c] and index int8 [8 * blocks] of an int8 weight [K / 32, N / 16, 16, 32]."""
    pieces = []
    for place in _blocks(*fractals.shape[:2]):
        raw = fractals[place].tobytes()
        deflate = zlib.compressobj(1, zlib.DEFLATED, RAW_DEFLATE)
        packed = deflate.compress(raw) + deflate.flush()
        pieces.append(packed if len(packed) < len(raw) else raw)
    sizes = np.array([len(piece) for piece in pieces])
    entries = np.stack((np.cumsum(sizes) - sizes, sizes), axis=1).astype(ENTRY)
    return np.frombuffer(b"".join(pieces), np.int8), entries.reshape(-1).view(np.int8)


def decode(stream: np.ndarray, index: np.ndarray, n: int, k: int) -> np.ndarray:
    """The int8 weight [n, k], without what fills up its last fractals."""
    columns, rows = -(-k // FRACTAL_K), -(-n // FRACTAL_N)
    fractals = np.empty((columns, rows, FRACTAL_N, FRACTAL_K), np.int8)
    entries = index.view(ENTRY).reshape(-1, 2)
    for place, (start, size) in zip(_blocks(columns, rows), entries.tolist(), strict=True):
        target = fractals[place]
        piece = stream[start : start + size].tobytes()
        if size < target.size:
            piece = zlib.decompress(piece, RAW_DEFLATE)
        target[...] = np.frombuffer(piece, np.int8).reshape(target.shape)
    # [K / 32, N / 16, 16, 32] -> [N / 16, 16, K / 32, 32] -> [N, K]
    whole = fractals.transpose(1, 2, 0, 3).reshape(rows * FRACTAL_N, columns * FRACTAL_K)
    return whole[:n, :k]


def write_program(path: Path) -> Path:
    """An executable file at `path` that is called like CANN's compressor; returns `path`."""
    root = Path(__file__).parents[1]
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(root)!r})\n"
        "from npu_emulator.compressed_weights import main\nmain(sys.argv[1:])\n"
    )
    path.chmod(0o755)
    return path


def main(arguments: list[str]) -> None:
    """Compress one file: sizes of the weight in fractals, OPTIONS, and four files' names.

    They are the weight, and what is written: stream, index, and as uint32 the tiling of N and of K
    and the bytes of the stream.
    """
    *numbers, source, stream, index, info = arguments
    columns, rows, *options = numbers
    if options != OPTIONS:
        sys.exit(f"The options are {options}; this stand-in takes {OPTIONS}.")
    weight = np.fromfile(source, np.int8)
    shape = int(columns), int(rows), FRACTAL_N, FRACTAL_K
    compressed, entries = encode(weight.reshape(shape))
    compressed.tofile(stream)
    entries.tofile(index)
    np.array([TILING, TILING, compressed.size], np.uint32).tofile(info)
