# SPDX-License-Identifier: Apache-2.0
"""Blocks of a row of a job's weight (`product.JOB`): widening, outliers, prefetch, results."""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from vllm_glm41v_npu.cpu.kernels.tiles import BLOCK, QUARTERS, STEP, pointer, prefetch, widen_row


@njit
def _outliers_between(job, start, end):
    """Return columns and values of the outliers from entry `start` to `end` of the index."""
    first = carray(pointer(job.starts + 4 * start), 1, np.int32)[0]
    count = carray(pointer(job.starts + 4 * end), 1, np.int32)[0] - first
    places = carray(pointer(job.outlier_columns + 2 * first), count, np.uint16)
    return places, carray(pointer(job.outlier_values + first), count, np.int8)


@njit
def _place_outliers(job, row, k, wide):
    """Write a block's outliers over its zeros at address wide; the block begins at column k."""
    block = row * job.blocks + k // BLOCK
    places, values = _outliers_between(job, block, block + 1)
    target = carray(pointer(wide), BLOCK, np.int16)
    for i in range(len(places)):
        target[places[i] - np.uint16(k)] = values[i]


@njit
def add_outliers(job, row, sums):
    """Add the products of all outliers of a row to its sums, for all tokens of the job.

    Done once for a row: a block has too few outliers for a loop of its own. Places are unsigned,
    because numba tests signed indices and adds the length to negative ones.
    """
    places, values = _outliers_between(job, row * job.blocks, (row + 1) * job.blocks)
    totals, others = carray(pointer(sums), QUARTERS * job.tokens, np.int32), job.tokens - 1
    for token in range(job.tokens):
        size = (job.blocks * job.tokens - token) * BLOCK
        activations = carray(pointer(job.x + token * job.x_stride), size, np.int16)
        total = np.int32(0)
        for i in range(len(places)):
            place = np.uint64(places[i])
            at = place + (place & np.uint64(2**16 - BLOCK)) * np.uint64(others)
            total += np.int32(values[i]) * np.int32(activations[at])
        totals[QUARTERS * token] += total


@njit
def prefetch_block(job, row, k):
    """Prefetch a row's block from column k; the address need not be valid."""
    start = job.weight + (row * job.columns + k) * job.bits // 8
    for line in range(0, BLOCK * job.bits // 8, 64):
        prefetch(start + line)


@njit
def widen_block(job, row, k, count, wide):
    """Widen columns [k, k + count) of a row, at most a BLOCK, to int16 at address wide."""
    if count % STEP:
        carray(pointer(wide), BLOCK, np.int16)[count // STEP * STEP :] = 0
    widen_row(job.weight + (row * job.columns + k) * job.bits // 8, job.bits, wide, count)
    if job.starts:
        _place_outliers(job, row, k, wide)


@njit
def _narrow(source, kind, target, count):
    """Copy `count` numbers of a kind from an address to int8 at another."""
    numbers, copy = carray(pointer(source), count, kind), carray(pointer(target), count, np.int8)
    for i in range(count):
        copy[i] = numbers[i]


@njit
def copy_columns(job, row, k, count, wide, target):
    """Copy columns [k, k + count) of a row as int8 to address target; wide has room for a BLOCK."""
    if job.bits == 8:
        _narrow(job.weight + row * job.columns + k, np.int8, target, count)
        return
    for block in range(k // BLOCK * BLOCK, k + count, BLOCK):
        widen_block(job, row, block, min(BLOCK, job.columns - block), wide)
        start, end = max(k, block), min(k + count, block + BLOCK)
        _narrow(wide + 2 * (start - block), np.int16, target + start - k, end - start)


@njit
def finish(job, token, row, count, totals):
    """Write `count` results of a token, from `row` on; their int32 totals are at an address.

    Without a scale they are copied; with one they are scaled in float64, rounded once to float32.
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
