# SPDX-License-Identifier: Apache-2.0
"""The exact int8 product, compiled by numba for the CPU it runs on.

With few tokens the weight is read once, in four places at the same time, so the product takes the
time of reading memory. With many, a block of some rows stays in the second cache, and a tile's
activations stay in the first. With still more, strassen.py needs fewer products. A job is cut into
tasks, and each thread takes the next task until none is left.
"""

from __future__ import annotations

import functools
import inspect
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, cfunc, from_dtype, njit, types

from vllm_glm41v_npu.cpu.kernels import blocks, strassen, tiles
from vllm_glm41v_npu.cpu.kernels.blocks import (
    add_outliers,
    copy_columns,
    finish,
    prefetch_block,
    widen_block,
)
from vllm_glm41v_npu.cpu.kernels.tiles import (
    BLOCK,
    FEW,
    QUARTERS,
    STEP,
    TOKENS,
    claim,
    pointer,
    quarters4,
    quarters8,
    quarters16,
    row8,
    row16,
    widen_row,
)

_TOKENS = 22 * TOKENS  # of a task
_FEW_ROWS = 16  # of each quarter
_ROWS = 64  # of a task: a block of their weights and their sums stay in the second cache

FIELDS = (
    *("next_task", "bits", "x", "x_stride", "tokens", "weight", "rows", "columns"),
    *("starts", "outlier_columns", "outlier_values", "blocks"),
    *("out", "out_stride", "scale", "bias", "token_scale"),
    *("part_tokens", "part_columns", "first_column", "last"),  # of strassen.py
)
JOB = np.dtype([(name, np.int64) for name in FIELDS])
"""A job of a worker; the tensors are those of `PackedWeight` and of `int8_linear`.

Tensors are addresses, 0 where there is none; strides are in bytes; `columns` includes the padding
of 4 bits. To multiply, x is int16 [blocks, tokens, BLOCK]; for parts see strassen.py.
"""


@njit
def _add_quarters(job, row, k, x, tokens, wide, sums):
    """Add the products of block k of four rows, a quarter of all rows apart, with few tokens.

    x is the address of the first token's block. The weights are widened in registers. Only the last
    columns, fewer than a STEP, are widened at address wide, with zeros behind them.
    """
    count, quarter = min(BLOCK, job.columns - k), job.rows // QUARTERS
    whole, rest = count // STEP * STEP, count % STEP
    stride = quarter * job.columns * job.bits // 8
    weight = job.weight + (row * job.columns + k) * job.bits // 8
    if whole and job.bits == 8:
        quarters8(tokens, weight, stride, x, whole, sums)
    elif whole:
        quarters4(tokens, weight, stride, x, whole, sums)
    if rest:
        carray(pointer(wide), QUARTERS * STEP, np.int16)[:] = 0
        for r in range(QUARTERS):
            source = weight + r * stride + whole * job.bits // 8
            widen_row(source, job.bits, wide + 2 * STEP * r, rest)
        quarters16(tokens, wide, 2 * STEP, x + 2 * whole, STEP, sums)


@njit
def _add_row(job, row, k, x, tokens, wide, sums):
    """Add the products of block k of a row; of 4 bits, it is widened already at address wide."""
    count = min(BLOCK, job.columns - k)
    whole = count // STEP * STEP
    weight = job.weight + row * job.columns + k
    if job.bits == 4:
        row16(tokens, wide, 0, x, (count + STEP - 1) // STEP * STEP, sums)
        return
    if whole:
        row8(tokens, weight, 0, x, whole, sums)
    if whole < count:
        widen_block(job, row, k + whole, count - whole, wide)
        row16(tokens, wide, 0, x + 2 * whole, STEP, sums)


@njit
def _multiply_quarters(job, row, row_end, wide, sums):
    """Multiply rows [row, row_end) of each quarter with all tokens; results go to `out`.

    Memory is read fastest in four places at once, each of them in order.
    """
    sums[:] = 0  # [rows, tokens, 4]
    for r in range(row, row_end):
        at = sums.ctypes.data + 4 * QUARTERS * job.tokens * (r - row)
        for k in range(0, job.columns, BLOCK):
            x = job.x + k // BLOCK * job.tokens * job.x_stride
            _add_quarters(job, r, k, x, job.tokens, wide.ctypes.data, at)
        if job.starts:
            for quarter in range(QUARTERS):
                add_outliers(job, r + quarter * (job.rows // QUARTERS), at + 4 * quarter)
    totals = np.empty(row_end - row, np.int32)
    for t in range(job.tokens):
        for quarter in range(QUARTERS):
            for r in range(row_end - row):
                totals[r] = sums[(r * job.tokens + t) * QUARTERS + quarter]
            first = row + quarter * (job.rows // QUARTERS)
            finish(job, t, first, row_end - row, totals.ctypes.data)


@njit
def _sum_blocks(job, row, row_end, token, tokens, wide, sums):
    """Add up block after block of columns: all rows with the tokens of each tile in turn."""
    for k in range(0, job.columns, BLOCK):
        if job.bits == 4:
            for r in range(row, row_end):
                prefetch_block(job, r + 1, k)
                at = wide + 2 * BLOCK * (r - row)
                widen_block(job, r, k, min(BLOCK, job.columns - k), at)
        at = sums
        for part in range(token, token + tokens, TOKENS):
            x = job.x + (k // BLOCK * job.tokens + part) * job.x_stride
            for r in range(row, row_end):
                if part == token and job.bits == 8:
                    prefetch_block(job, r + 1, k)
                some = min(TOKENS, token + tokens - part)
                _add_row(job, r, k, x, some, wide + 2 * BLOCK * (r - row), at)
                at += 4 * TOKENS


@njit
def _multiply_rows(job, row, row_end, token, tokens, wide, sums):
    """Multiply rows [row, row_end) with `tokens` tokens from `token` on; results go to `out`."""
    sums[:] = 0  # [tokens / 12, rows, 12]
    _sum_blocks(job, row, row_end, token, tokens, wide.ctypes.data, sums.ctypes.data)
    rows = row_end - row
    totals = np.empty(rows, np.int32)
    for t in range(tokens):
        first = t // TOKENS * rows * TOKENS + t % TOKENS
        for r in range(rows):
            totals[r] = sums[first + r * TOKENS]
        finish(job, token + t, row, rows, totals.ctypes.data)


@njit
def _multiply(jobs):
    """Compute out = x . weight^T, scaled if there is a scale.

    With few tokens, four quarters of the rows at once, and then up to three rows that are left.
    """
    job = jobs[0]
    quarter = job.rows // QUARTERS if job.tokens <= FEW else 0
    rest = QUARTERS * quarter
    quarters = (quarter + _FEW_ROWS - 1) // _FEW_ROWS
    groups = (job.tokens + _TOKENS - 1) // _TOKENS
    tasks = quarters + groups * ((job.rows - rest + _ROWS - 1) // _ROWS)
    wide = np.empty(_ROWS * BLOCK, np.int16)
    sums = np.empty((min(job.tokens, _TOKENS) + TOKENS - 1) // TOKENS * TOKENS * _ROWS, np.int32)
    task = claim(jobs.ctypes.data)
    while task < tasks:
        if task < quarters:
            row = task * _FEW_ROWS
            _multiply_quarters(job, row, min(row + _FEW_ROWS, quarter), wide, sums)
        else:
            token = (task - quarters) % groups * _TOKENS
            row = rest + (task - quarters) // groups * _ROWS
            row_end, tokens = min(row + _ROWS, job.rows), min(_TOKENS, job.tokens - token)
            _multiply_rows(job, row, row_end, token, tokens, wide, sums)
        task = claim(jobs.ctypes.data)


@njit
def _scale(jobs):
    """Compute out = x, scaled if there is a scale; x, int32 [tokens, rows], may be out itself."""
    job = jobs[0]
    token = claim(jobs.ctypes.data)
    while token < job.tokens:
        finish(job, token, 0, job.rows, job.x + token * job.x_stride)
        token = claim(jobs.ctypes.data)


@njit
def _unpack(jobs):
    """Compute out = weight, int8 [rows, out_stride], without the padding of 4 bits."""
    job = jobs[0]
    wide = np.empty(BLOCK, np.int16)
    row = claim(jobs.ctypes.data)
    while row < job.rows:
        target = job.out + row * job.out_stride
        copy_columns(job, row, 0, job.out_stride, wide.ctypes.data, target)
        row = claim(jobs.ctypes.data)


def _functions(source: int) -> dict[str, Callable[[Any], None]]:
    """Return the functions that threads run, by name.

    numba's cache on disk depends on this file and on the variables that a function encloses. So
    each encloses `source`, a number that is never 0 and changes with the other modules' text.
    """

    def multiply(data):
        if source:
            _multiply(carray(data, 1))

    def multiply_parts(data):
        if source:
            strassen.multiply_parts(carray(data, 1))

    def add_activations(data):
        if source:
            strassen.add_activations(carray(data, 1))

    def scale(data):
        if source:
            _scale(carray(data, 1))

    def unpack(data):
        if source:
            _unpack(carray(data, 1))

    functions = (multiply, multiply_parts, add_activations, scale, unpack)
    return {function.__name__: function for function in functions}


@functools.cache
def worker(name: str) -> int:
    """Return the address of a compiled function that does a JOB; several threads may call it.

    Compiling takes some seconds, once on a machine if the code can be cached on disk: beside this
    file, in the user's cache directory, or in NUMBA_CACHE_DIR.
    """
    files = (inspect.getsource(module).encode() for module in (blocks, strassen, tiles))
    source = zlib.crc32(b"".join(files)) | 1
    function = _functions(source)[name]
    signature = types.void(types.CPointer(from_dtype(JOB)))
    try:
        return cfunc(signature, nopython=True, cache=True)(function).address
    except RuntimeError as error:  # "cannot cache function ...: no locator available for file ..."
        if "cannot cache" not in str(error):
            raise
        return cfunc(signature, nopython=True)(function).address
