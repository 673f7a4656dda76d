# SPDX-License-Identifier: Apache-2.0
"""Products of one or four rows of a weight with a few tokens, in registers.

A tile multiplies a row with 1 to 12 tokens, or four rows with 1 to 3, over a stretch of K, with one
register of sums for each pair of row and token. Both factors are widened to int16: the sum of two
such products always fits int32, so nothing saturates, unlike the int8 instruction of AVX2
(`vpmaddubsw`) that oneDNN uses. LLVM turns a step into `vpmaddwd` on AVX2 and into `vpdpwssd` with
VNNI. Both read activations from memory, so with 12 tokens a step is little more than these.

This module generates LLVM code, because numba finds these instructions only in a loop over one row.
Addresses are integers: `pointer` turns one into a pointer for `carray`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

BLOCK = 1024  # columns of a tile at most; outliers are indexed by such blocks
PAIR = 32  # weights of 4 bits: a byte holds weight j (low) and j + 16 (high) of 32 neighbours
STEP = 64  # columns: those of a tile are a multiple
TOKENS = 12  # of a tile at most: their sums fill the registers, a block of them the first cache
QUARTERS = 4  # rows of a tile of few tokens
FEW = TOKENS // QUARTERS
_AHEAD = 2048  # prefetch distance in bytes
_LANES = 16  # int16 in a register of 256 bits

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_BYTES, _SHORTS, _WORDS = (ir.VectorType(kind, _LANES) for kind in (_I8, _I16, _I32))
_SUMS = ir.VectorType(_I32, _LANES // 2)


def _shuffle(b: ir.IRBuilder, u: ir.Value, v: ir.Value, lanes: list[int]) -> ir.Value:
    return b.shuffle_vector(u, v, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))


def _vector(b: ir.IRBuilder, address: ir.Value, kind: ir.VectorType) -> ir.Value:
    """Load the vector at an address that need not be aligned."""
    value = b.load(b.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def _multiply_pairs(b: ir.IRBuilder, u: ir.Value, v: ir.Value) -> ir.Value:
    """Multiply two int16 [16] to int32 [8]: u[2i] * v[2i] + u[2i + 1] * v[2i + 1]."""
    products = b.mul(b.sext(u, _WORDS), b.sext(v, _WORDS), flags=("nsw",))
    even, odd = list(range(0, _LANES, 2)), list(range(1, _LANES, 2))
    return b.add(_shuffle(b, products, products, even), _shuffle(b, products, products, odd))


def _totals(b: ir.IRBuilder, sums: list[ir.Value]) -> ir.Value:
    """Add up each of up to four int32 [8]: int32 [4] of totals, zeros where there are fewer."""

    def fold(u: ir.Value, v: ir.Value) -> ir.Value:
        even, odd = [0, 2, 8, 10, 4, 6, 12, 14], [1, 3, 9, 11, 5, 7, 13, 15]
        return b.add(_shuffle(b, u, v, even), _shuffle(b, u, v, odd))

    one, two, three, four = sums + [ir.Constant(_SUMS, None)] * (4 - len(sums))
    both = fold(fold(one, two), fold(three, four))  # the totals are the sums of its two halves
    return b.add(_shuffle(b, both, both, [0, 1, 2, 3]), _shuffle(b, both, both, [4, 5, 6, 7]))


def _widen(b: ir.IRBuilder, address: ir.Value, bits: int) -> list[ir.Value]:
    """Load the next 16 weights of 16 or 8 bits, or 32 of 4 bits, as vectors int16 [16]."""
    if bits == 16:
        return [_vector(b, address, _SHORTS)]
    wide = b.sext(_vector(b, address, _BYTES), _SHORTS)
    if bits == 8:
        return [wide]
    up, down = (ir.Constant(_SHORTS, [shift] * _LANES) for shift in (12, 4))
    return [b.ashr(b.shl(wide, up), up), b.ashr(wide, down)]


def _prefetch(b: ir.IRBuilder, address: ir.Value) -> None:
    """Prefetch the cache line at an address, which need not be valid."""
    kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0i8")
    read, second_cache, data = _I32(0), _I32(2), _I32(1)
    b.call(function, [b.inttoptr(address, _I8.as_pointer()), read, second_cache, data])


def _add_columns(
    b: ir.IRBuilder,
    columns: int,
    bits: int,
    rows: list[ir.Value],
    x: ir.Value,
    sums: list[ir.Value],
) -> list[ir.Value]:
    """Return a tile's sums, [tokens, rows], with the products of some columns added."""
    sums = list(sums)
    for column in range(0, columns, PAIR):
        for r, row in enumerate(rows):
            at = b.add(row, _I64(column * bits // 8))
            halves = [at] if bits == 4 else [at, b.add(at, _I64(PAIR * bits // 16))]
            weights = [vector for half in halves for vector in _widen(b, half, bits)]
            for i in range(r, len(sums), len(rows)):
                for half, vector in enumerate(weights):
                    k = BLOCK * (i // len(rows)) + column + _LANES * half
                    activations = _vector(b, b.add(x, _I64(2 * k)), _SHORTS)
                    sums[i] = b.add(sums[i], _multiply_pairs(b, vector, activations))
    return sums


def _generate_tile(
    b: ir.IRBuilder, rows: int, tokens: int, bits: int, arguments: list[ir.Value]
) -> None:
    """Generate the loop of a tile; then its sums are added to `out`, four at a time."""
    w, stride, x, count, out = arguments
    before, inside, after = b.block, b.append_basic_block("step"), b.append_basic_block("done")
    b.branch(inside)
    b.position_at_end(inside)
    k, sums = b.phi(_I64), [b.phi(_SUMS) for _ in range(rows * tokens)]
    w_k = b.add(w, b.udiv(b.mul(k, _I64(bits)), _I64(8)))
    w_rows = [b.add(w_k, b.mul(stride, _I64(row))) for row in range(rows)]
    if rows > 1:
        for row in w_rows:
            _prefetch(b, b.add(row, _I64(_AHEAD)))
    step = STEP if rows > 1 else PAIR  # one row is not prefetched line by line
    results = _add_columns(b, step, bits, w_rows, b.add(x, b.mul(k, _I64(2))), sums)
    following = b.add(k, _I64(step))
    for phi, result in zip([k, *sums], [following, *results], strict=True):
        phi.add_incoming(ir.Constant(phi.type, 0 if phi is k else None), before)
        phi.add_incoming(result, inside)
    b.cbranch(b.icmp_signed("<", following, count), inside, after)
    b.position_at_end(after)
    for i in range(0, len(results), 4):
        address = b.add(out, _I64(4 * i))
        total = _totals(b, results[i : i + 4])
        total = b.add(total, _vector(b, address, total.type))
        b.store(total, b.inttoptr(address, total.type.as_pointer())).align = 4


def _make_tiles(rows: int, bits: int) -> Callable[..., None]:
    """Return tiles(tokens, w, stride, x, k, out): out[t, r] += sum of w[r, :k] * x[t, :k].

    w, x and out are addresses: w holds weights of 16, 8 or 4 bits, x is int16 [tokens, BLOCK], and
    out is int32 [tokens, rows], padded to a multiple of 4 numbers. `stride` is the number of bytes
    from one row of w to the next; k is a positive multiple of STEP.
    """

    @intrinsic
    def switch(typing_context, tokens, w, stride, x, k, out):
        def generate(context, b, signature, arguments):  # numba's interface of code generators
            end = b.append_basic_block("end")
            choice = b.switch(arguments[0], end)
            for number in range(1, TOKENS // rows + 1):
                block = b.append_basic_block("tile")
                choice.add_case(_I64(number), block)
                b.position_at_end(block)
                _generate_tile(b, rows, number, bits, arguments[1:])
                b.branch(end)
            b.position_at_end(end)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    @njit
    def tiles(tokens, w, stride, x, k, out):
        switch(tokens, w, stride, x, k, out)

    return tiles


@intrinsic
def pointer(typing_context, address):
    """Turn an address into a pointer, for carray."""
    generate = lambda context, b, signature, args: b.inttoptr(args[0], _I8.as_pointer())  # noqa: E731
    return types.voidptr(types.int64), generate


@intrinsic
def prefetch(typing_context, address):
    """Prefetch the cache line at an address, which need not be valid."""

    def generate(context, b, signature, args):
        _prefetch(b, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def claim(typing_context, address):
    """Return the number at an address and raise it by one: no two threads get the same."""

    def generate(context, b, signature, args):
        return b.atomic_rmw("add", b.inttoptr(args[0], _I64.as_pointer()), _I64(1), "monotonic")

    return types.int64(types.int64), generate


@intrinsic
def _unpack(typing_context, w, wide):
    """Widen 32 weights of 4 bits at address w to int16 at address wide."""

    def generate(context, b, signature, args):
        for half, weights in enumerate(_widen(b, args[0], 4)):
            address = b.add(args[1], _I64(32 * half))
            b.store(weights, b.inttoptr(address, _SHORTS.as_pointer())).align = 2
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


row8, row16 = (_make_tiles(1, bits) for bits in (8, 16))
quarters4, quarters8, quarters16 = (_make_tiles(QUARTERS, bits) for bits in (4, 8, 16))


@njit
def widen_row(w, bits, wide, count):
    """Widen `count` weights of a row at address w to int16 at address wide."""
    target = carray(pointer(wide), count, np.int16)
    if bits == 8:
        source = carray(pointer(w), count, np.int8)
        for k in range(count):
            target[k] = source[k]
        return
    for k in range(0, count, PAIR):
        _unpack(w + k // 2, wide + 2 * k)
