# SPDX-License-Identifier: Apache-2.0
"""The exact int8 product, compiled by numba for the CPU it runs on.

With few tokens the weight is widened in registers and read once, so the time is that of reading
memory. With many, rows are widened once into the first cache and shared by a block of tokens. A
job is cut into tasks, and threads take the next one until none is left.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numba import carray, cfunc, from_dtype, njit, types

from . import tiles
from .tiles import BLOCK, ROWS, claim, pointer, prefetch, tiles4, tiles8, tiles16, widen_row

_TOKENS = 256  # whose activations, a block of K wide, stay in the second cache


JOB = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("next_task", "few", "bits", "x", "x_stride", "tokens", "weight", "rows", "columns"),
            *("starts", "outlier_columns", "outlier_values", "blocks"),
            *("out", "out_stride", "scale", "bias", "token_scale"),
        )
    ]
)
"""What a worker is to do; the tensors are those of `PackedWeight` and of `int8_linear`.

Addresses, 0 where there is none; strides in bytes; `columns` with the padding of 4 bits. To
multiply few tokens, x is int16 [tokens, columns with padding], else int16 [blocks, tokens, BLOCK].
"""


@njit
def _outliers_between(job, start, end):
    """Columns and values of the outliers from entry `start` to `end` of the index."""
    first = carray(pointer(job.starts + 4 * start), 1, np.int32)[0]
    count = carray(pointer(job.starts + 4 * end), 1, np.int32)[0] - first
    places = carray(pointer(job.outlier_columns + 2 * first), count, np.uint16)
    return places, carray(pointer(job.outlier_values + first), count, np.int8)


@njit
def _place_outliers(job, row, k, wide):
    """Write the outliers of a row's block from column k over its zeros at address wide."""
    block = row * job.blocks + k // BLOCK
    places, values = _outliers_between(job, block, block + 1)
    target = carray(pointer(wide), BLOCK, np.int16)
    for i in range(len(places)):
        target[places[i] - np.uint16(k)] = values[i]


@njit
def _add_outliers(job, row, x, tokens, sums):
    """Add the products of a row's outliers to its column of a tile's sums."""
    places, values = _outliers_between(job, row * job.blocks, (row + 1) * job.blocks)
    totals = carray(pointer(sums), ROWS * tokens, np.int32)
    for token in range(tokens):
        activations = carray(pointer(x + token * job.x_stride), job.x_stride // 2, np.int16)
        total = np.int32(0)
        for i in range(len(places)):
            total += np.int32(values[i]) * np.int32(activations[places[i]])
        totals[ROWS * token] += total


@njit
def _widen(job, row, k, count, wide):
    """Columns [k, k + count) of a row, at most a BLOCK, as int16 at address wide."""
    widen_row(job.weight + (row * job.columns + k) * job.bits // 8, job.bits, wide, count)
    if job.starts:
        _place_outliers(job, row, k, wide)


@njit
def _add_block(job, row, rows, k, count, x, tokens, wide, sums):
    """Add the products of `rows` rows, at most 4, in columns [k, k + count), at most a BLOCK.

    The rows are widened, and zeros fill the last step of 16. x is the address of column k.
    """
    for r in range(rows):
        at = wide + 2 * BLOCK * r
        _widen(job, row + r, k, count, at)
        if count % 16:
            carray(pointer(at), BLOCK, np.int16)[count : count + 16] = 0
    steps = (count + 15) // 16 * 16
    stride = job.columns * job.bits // 8
    following = job.weight + (row + ROWS) * stride + k * job.bits // 8
    for token in range(0, tokens, 3):
        line = token // 3 * 64  # while computing, fetch the next rows: memory is slow to answer
        if line < count * job.bits // 8:
            for r in range(ROWS):
                prefetch(following + r * stride + line)
        part, at = x + token * job.x_stride, sums + 16 * token
        tiles16(wide, 2 * BLOCK, part, job.x_stride, steps, at, min(3, tokens - token))


@njit
def _add_rows_directly(job, row, k_end, x, tokens, sums):
    """Add the products of 4 rows in columns [0, k_end), widened in registers."""
    stride = job.columns * job.bits // 8
    weight = job.weight + row * stride
    if job.bits == 8:
        tiles8(weight, stride, x, job.x_stride, k_end, sums, tokens)
        return
    tiles4(weight, stride, x, job.x_stride, k_end, sums, tokens)
    if job.starts:
        for r in range(ROWS):
            _add_outliers(job, row + r, x, tokens, sums + 4 * r)


@njit
def _finish(job, token, row, count, totals):
    """Write `count` results of a token from `row` on, whose int32 totals are at an address.

    As they are, or scaled: in float64, and rounded once to float32.
    """
    source = carray(pointer(totals), count, np.int32)
    at = job.out + token * job.out_stride + 4 * row
    if not job.scale:
        carray(pointer(at), count, np.int32)[:] = source
        return
    target = carray(pointer(at), count, np.float32)
    scale = carray(pointer(job.scale + 4 * row), count, np.float32)
    factor = np.float64(1)
    if job.token_scale:
        factor = np.float64(carray(pointer(job.token_scale), job.tokens, np.float32)[token])
    if job.bias:
        bias = carray(pointer(job.bias + 4 * row), count, np.int32)
        for r in range(count):
            total = np.float64(source[r]) + np.float64(bias[r])
            target[r] = np.float32(total * np.float64(scale[r]) * factor)
    else:
        for r in range(count):
            target[r] = np.float32(np.float64(source[r]) * np.float64(scale[r]) * factor)


@njit
def _sum_few(job, row, row_end, token, tokens, wide, sums):
    """Row after row, all columns; a row is read once and in order."""
    x = job.x + token * job.x_stride
    for r in range(row, row_end, ROWS):
        at = sums + 4 * (r - row) * tokens  # int32 [tokens, 4]
        start, rows = 0, min(ROWS, row_end - r)
        if rows == ROWS and job.columns >= 16:
            start = job.columns // 16 * 16
            _add_rows_directly(job, r, start, x, tokens, at)
        for k in range(start, job.columns, BLOCK):
            count = min(BLOCK, job.columns - k)
            _add_block(job, r, rows, k, count, x + 2 * k, tokens, wide, at)


@njit
def _sum_many(job, row, row_end, token, tokens, wide, sums):
    """Block after block of columns, all rows; x is [blocks, tokens, BLOCK]."""
    for k in range(0, job.columns, BLOCK):
        count = min(BLOCK, job.columns - k)
        x = job.x + (k // BLOCK * job.tokens + token) * job.x_stride
        for r in range(row, row_end, ROWS):
            at = sums + 4 * (r - row) * tokens
            _add_block(job, r, min(ROWS, row_end - r), k, count, x, tokens, wide, at)


@njit
def _multiply_task(job, row, row_end, token, tokens, wide, sums):
    """The products of rows [row, row_end) with `tokens` tokens from `token`, written to `out`."""
    sums[:] = 0  # [rows / 4, tokens, 4]
    if job.few:
        _sum_few(job, row, row_end, token, tokens, wide.ctypes.data, sums.ctypes.data)
    else:
        _sum_many(job, row, row_end, token, tokens, wide.ctypes.data, sums.ctypes.data)
    totals = np.empty(row_end - row, np.int32)
    for t in range(tokens):
        for r in range(row_end - row):
            totals[r] = sums[(r // ROWS * tokens + t) * ROWS + r % ROWS]
        _finish(job, token + t, row, row_end - row, totals.ctypes.data)


@njit
def _multiply(jobs):
    """out = x . weight^T, scaled if there is a scale."""
    job = jobs[0]
    rows = 16 if job.few else 64
    groups = (job.tokens + _TOKENS - 1) // _TOKENS
    tasks = groups * ((job.rows + rows - 1) // rows)
    wide = np.empty(ROWS * BLOCK, np.int16)
    sums = np.empty(min(job.tokens, _TOKENS) * rows, np.int32)
    task = claim(jobs.ctypes.data)
    while task < tasks:
        token, row = task % groups * _TOKENS, task // groups * rows
        tokens, row_end = min(_TOKENS, job.tokens - token), min(row + rows, job.rows)
        _multiply_task(job, row, row_end, token, tokens, wide, sums)
        task = claim(jobs.ctypes.data)


@njit
def _scale(jobs):
    """out = x, scaled if there is a scale; x is int32 [tokens, rows] and may be where out is."""
    job = jobs[0]
    token = claim(jobs.ctypes.data)
    while token < job.tokens:
        _finish(job, token, 0, job.rows, job.x + token * job.x_stride)
        token = claim(jobs.ctypes.data)


@njit
def _unpack(jobs):
    """out = weight, int8 [rows, out_stride] without the padding of 4 bits."""
    job = jobs[0]
    wide = np.empty(BLOCK, np.int16)
    row = claim(jobs.ctypes.data)
    while row < job.rows:
        for k in range(0, job.out_stride, BLOCK):
            _widen(job, row, k, min(BLOCK, job.columns - k), wide.ctypes.data)
            count = min(BLOCK, job.out_stride - k)
            source = carray(pointer(wide.ctypes.data), count, np.int16)
            target = carray(pointer(job.out + row * job.out_stride + k), count, np.int8)
            for i in range(count):
                target[i] = source[i]
        row = claim(jobs.ctypes.data)


def _functions(source: int) -> dict[str, Callable[[Any], None]]:
    """What threads run, by name.

    numba's cache on disk looks at this file, and at the variables that a function encloses: thus
    `source`, a number that is never 0 and changes with tiles.py.
    """

    def multiply(data):
        if source:
            _multiply(carray(data, 1))

    def scale(data):
        if source:
            _scale(carray(data, 1))

    def unpack(data):
        if source:
            _unpack(carray(data, 1))

    return {function.__name__: function for function in (multiply, scale, unpack)}


@functools.cache
def worker(name: Literal["multiply", "scale", "unpack"]) -> int:
    """The address of a compiled function that does a JOB; any number of threads may call it.

    Compiling takes some seconds, once on a machine: the code is kept in a cache on disk where a
    directory for it can be written (beside this file, in the user's cache, or NUMBA_CACHE_DIR).
    """
    source = zlib.crc32(Path(tiles.__file__).read_bytes()) | 1
    function = _functions(source)[name]
    signature = types.void(types.CPointer(from_dtype(JOB)))
    try:
        return cfunc(signature, nopython=True, cache=True)(function).address
    except RuntimeError as error:  # "cannot cache function ...: no locator available for file ..."
        if "cannot cache" not in str(error):
            raise
        return cfunc(signature, nopython=True)(function).address
