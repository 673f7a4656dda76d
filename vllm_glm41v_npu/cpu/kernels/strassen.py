# SPDX-License-Identifier: Apache-2.0
"""The exact product of many tokens with fewer multiplications: Strassen's algorithm, two levels.

Tokens, columns of a chunk and rows of a task are each cut into halves, and these into halves again.
The product of 4 x 4 parts takes 49 products of parts instead of 64 (V. Strassen, "Gaussian
elimination is not optimal", Numerische Mathematik 13, 1969). Their factors are sums of up to four
int8, which fit int16, so the tiles of `tiles.py` multiply them. The result is exact: integers are
added and subtracted modulo 2**32 in any order, and int32 holds the result (`packing.py` limits K).

Without it a layer takes 1.1 to 1.25 times as long for 512 to 1,024 tokens on a CPU held to AVX2. A
CPU with VNNI uses oneDNN's product instead.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from vllm_glm41v_npu.cpu.kernels.blocks import copy_columns, finish
from vllm_glm41v_npu.cpu.kernels.tiles import BLOCK, claim, pointer, prefetch, row16

PARTS, PRODUCTS = 4, 49
ROWS = 32  # of each part of a task: its weights and its sums stay in the second cache
_TOKENS = 8  # of a tile: fewer than it can take, so that the first cache has room for the next tile
_AHEAD = 2 * BLOCK * _TOKENS // ROWS  # bytes of the next tile to prefetch with each row

# For each of the seven products of halves: the signs of the four quarters of x [tokens, columns] in
# its first factor, of the weight [rows, columns] in its second, and its sign in each quarter of the
# result [tokens, rows].
_SEVEN = np.array(
    [
        [[1, 0, 0, 1], [1, 0, 0, 1], [1, 0, 0, 1]],
        [[0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 1, -1]],
        [[1, 0, 0, 0], [0, 0, 1, -1], [0, 1, 0, 1]],
        [[0, 0, 0, 1], [-1, 1, 0, 0], [1, 0, 1, 0]],
        [[1, 1, 0, 0], [0, 0, 0, 1], [-1, 1, 0, 0]],
        [[-1, 0, 1, 0], [1, 0, 1, 0], [0, 0, 0, 1]],
        [[0, 1, 0, -1], [0, 1, 0, 1], [1, 0, 0, 0]],
    ]
).reshape(7, 3, 2, 2)
_SIGNS = np.einsum("imab,jmcd->mijacbd", _SEVEN, _SEVEN).reshape(3, PRODUCTS, PARTS * PARTS)


def _terms(signs: np.ndarray) -> np.ndarray:
    """Return how to make the factors, [PRODUCTS, 6].

    A row holds the count of parts (1, 2 or 4), the sign of the second half of them (the first half
    has sign 1), and the places of the parts.
    """
    rows = []
    for factor in signs:
        places = sorted(np.flatnonzero(factor), key=lambda place: -factor[place])
        rows.append([len(places), factor[places[-1]], *places, *[0] * (4 - len(places))])
    return np.array(rows)


_X_TERMS, _WEIGHT_TERMS = _terms(_SIGNS[0]), _terms(_SIGNS[1])
_OUT_SIGNS = np.ascontiguousarray(_SIGNS[2])  # numba's cache on disk needs it contiguous


@njit
def _add_parts(terms, source, rows, columns, target):
    """Make a factor, int16 [rows, BLOCK] at an address, from parts int8 [16, rows, columns]."""
    count, plus, size = terms[0], terms[1] > 0, rows * columns
    wide = np.int16  # numba would add in int64, which takes four times as long
    for start in range(source, source + size, columns):
        total = carray(pointer(target), columns, np.int16)
        target += 2 * BLOCK
        a = carray(pointer(start + terms[2] * size), columns, np.int8)
        b = carray(pointer(start + terms[3] * size), columns, np.int8)
        c = carray(pointer(start + terms[4] * size), columns, np.int8)
        d = carray(pointer(start + terms[5] * size), columns, np.int8)
        if count == 1:
            for k in range(columns):
                total[k] = a[k]
        elif count == 2 and plus:
            for k in range(columns):
                total[k] = wide(a[k]) + wide(b[k])
        elif count == 2:
            for k in range(columns):
                total[k] = wide(a[k]) - wide(b[k])
        elif plus:
            for k in range(columns):
                total[k] = wide(a[k]) + wide(b[k]) + wide(c[k]) + wide(d[k])
        else:
            for k in range(columns):
                total[k] = wide(a[k]) + wide(b[k]) - wide(c[k]) - wide(d[k])


@njit
def add_activations(jobs):
    """Make the factors, int16 [PRODUCTS, part_tokens, BLOCK], of x, int8 [16, part_tokens, k]."""
    job = jobs[0]
    i = claim(jobs.ctypes.data)
    while i < PRODUCTS:
        target = job.out + i * job.part_tokens * 2 * BLOCK
        _add_parts(_X_TERMS[i], job.x, job.part_tokens, job.part_columns, target)
        i = claim(jobs.ctypes.data)


@njit
def _cut_weight(job, row, wide, parts):
    """Copy a task's rows to parts, int8 [4, 4, ROWS, part_columns], zeros beyond the weight."""
    size = job.part_columns
    if row + PARTS * ROWS > job.rows or job.first_column + PARTS * size > job.columns:
        parts[:] = 0
    for part in range(PARTS * PARTS):
        k = min(job.first_column + part % PARTS * size, job.columns)
        count = min(size, job.columns - k)
        first = row + part // PARTS * ROWS
        for r in range(min(ROWS, job.rows - first)):
            target = parts.ctypes.data + (part * ROWS + r) * size
            copy_columns(job, first + r, k, count, wide, target)


@njit
def _multiply_parts(job, i, wide, products):
    """Compute product i, [tokens / 8, ROWS, 8]; the weight's factor is at address wide."""
    products[:] = 0
    at, x = products.ctypes.data, job.x + i * job.part_tokens * 2 * BLOCK
    for token in range(0, job.part_tokens, _TOKENS):
        some = min(_TOKENS, job.part_tokens - token)
        following = x + 2 * BLOCK * (token + _TOKENS)
        for r in range(ROWS):
            for line in range(0, _AHEAD, 64):
                prefetch(following + _AHEAD * r + line)
            row16(some, wide + 2 * BLOCK * r, 0, x + 2 * BLOCK * token, job.part_columns, at)
            at += 4 * _TOKENS


@njit
def _add_products(signs, products, sums):
    """Add a product to, or subtract it from, the parts of the result that contain it."""
    for part in range(PARTS * PARTS):
        total = sums[part]
        if signs[part] > 0:
            for n in range(len(products)):
                total[n] += products[n]
        elif signs[part] < 0:
            for n in range(len(products)):
                total[n] -= products[n]


@njit
def _write(job, row, sums):
    """Add a task's sums to those of earlier chunks in `out`; after the last chunk, scale them."""
    totals = np.empty(ROWS, np.int32)
    for token in range(job.tokens):
        t = token % job.part_tokens
        at = t // _TOKENS * ROWS * _TOKENS + t % _TOKENS
        for part in range(PARTS):
            first = row + part * ROWS
            count = min(ROWS, job.rows - first)
            if count <= 0:
                break
            own = sums[token // job.part_tokens * PARTS + part]
            for r in range(count):
                totals[r] = own[at + r * _TOKENS]
            out = carray(pointer(job.out + token * job.out_stride + 4 * first), count, np.int32)
            if job.first_column:
                for r in range(count):
                    totals[r] += out[r]
            if job.last:
                finish(job, token, first, count, totals.ctypes.data)
            else:
                out[:] = totals[:count]


@njit
def multiply_parts(jobs):
    """Add a chunk to out = x . weight^T: PARTS * part_columns columns from `first_column` on."""
    job = jobs[0]
    parts = np.empty(PARTS * PARTS * ROWS * job.part_columns, np.int8)
    wide = np.empty(ROWS * BLOCK, np.int16)
    tiles = (job.part_tokens + _TOKENS - 1) // _TOKENS
    products = np.empty(tiles * ROWS * _TOKENS, np.int32)
    sums = np.empty((PARTS * PARTS, len(products)), np.int32)
    row = claim(jobs.ctypes.data) * PARTS * ROWS
    while row < job.rows:
        _cut_weight(job, row, wide.ctypes.data, parts)
        sums[:] = 0
        for i in range(PRODUCTS):
            terms = _WEIGHT_TERMS[i]
            _add_parts(terms, parts.ctypes.data, ROWS, job.part_columns, wide.ctypes.data)
            _multiply_parts(job, i, wide.ctypes.data, products)
            _add_products(_OUT_SIGNS[i], products, sums)
        _write(job, row, sums)
        row = claim(jobs.ctypes.data) * PARTS * ROWS
