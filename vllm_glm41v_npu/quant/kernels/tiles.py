# SPDX-License-Identifier: Apache-2.0
"""Products of a few rows of a weight with a few tokens, in registers.

A tile is the product of 4 rows of the weight with 1 to 3 tokens, summed over a stretch of K with
the sums in registers. Both factors are widened to int16: the sum of two such products always fits
int32, so nothing saturates, unlike the int8 instruction of AVX2 (`vpmaddubsw`) that oneDNN uses.
LLVM makes `vpmaddwd` of a step on AVX2 and `vpdpwssd` where there is VNNI.

It is LLVM code that is generated here, because numba makes these instructions of no loop over more
than one row. Addresses are integers: `pointer` turns one into what `carray` takes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

BLOCK = 1024  # weights of a row that are widened at once; outliers are indexed by such blocks
PAIR = 32  # nibbles: a byte holds weight j (low) and j + 16 (high) of 32 neighbours
ROWS = 4  # of the weight in a tile
_LANES = 16  # int16 in a register of 256 bits

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_BYTES, _SHORTS, _WORDS = (ir.VectorType(kind, _LANES) for kind in (_I8, _I16, _I32))


def _shuffle(b: ir.IRBuilder, u: ir.Value, v: ir.Value, lanes: list[int]) -> ir.Value:
    return b.shuffle_vector(u, v, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))


def _vector(b: ir.IRBuilder, address: ir.Value, kind: ir.VectorType) -> ir.Value:
    """The vector at an address that need not be aligned."""
    value = b.load(b.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def _multiply_pairs(b: ir.IRBuilder, u: ir.Value, v: ir.Value) -> ir.Value:
    """int16 [16], twice, to int32 [8]: u[2i] * v[2i] + u[2i + 1] * v[2i + 1]."""
    products = b.mul(b.sext(u, _WORDS), b.sext(v, _WORDS), flags=("nsw",))
    even, odd = list(range(0, _LANES, 2)), list(range(1, _LANES, 2))
    return b.add(_shuffle(b, products, products, even), _shuffle(b, products, products, odd))


def _totals(b: ir.IRBuilder, sums: list[ir.Value]) -> ir.Value:
    """Four int32 [8] to the int32 [4] of their totals."""

    def fold(u: ir.Value, v: ir.Value) -> ir.Value:
        even, odd = [0, 2, 8, 10, 4, 6, 12, 14], [1, 3, 9, 11, 5, 7, 13, 15]
        return b.add(_shuffle(b, u, v, even), _shuffle(b, u, v, odd))

    both = fold(fold(sums[0], sums[1]), fold(sums[2], sums[3]))  # its halves are to be added
    return b.add(_shuffle(b, both, both, [0, 1, 2, 3]), _shuffle(b, both, both, [4, 5, 6, 7]))


def _widen(b: ir.IRBuilder, address: ir.Value, bits: int) -> list[ir.Value]:
    """The next weights of a row as int16 [16] each: one of 16 or 8 bits, two of nibbles."""
    if bits == 16:
        return [_vector(b, address, _SHORTS)]
    wide = b.sext(_vector(b, address, _BYTES), _SHORTS)
    if bits == 8:
        return [wide]
    up, down = (ir.Constant(_SHORTS, [shift] * _LANES) for shift in (12, 4))
    return [b.ashr(b.shl(wide, up), up), b.ashr(wide, down)]


def _loop(
    b: ir.IRBuilder, count: ir.Value, step: int, sums: int, body: Callable[..., list[ir.Value]]
) -> list[ir.Value]:
    """Run body(k, sums) for k in range(0, count, step), count > 0; the last sums, int32 [8]."""
    before, inside = b.block, b.append_basic_block("step")
    after = b.append_basic_block("done")
    b.branch(inside)
    b.position_at_end(inside)
    k = b.phi(_I64)
    phis = [b.phi(ir.VectorType(_I32, _LANES // 2)) for _ in range(sums)]
    results = body(k, phis)
    following = b.add(k, _I64(step))
    for phi, result in zip(phis, results, strict=True):
        phi.add_incoming(ir.Constant(phi.type, None), before)
        phi.add_incoming(result, inside)
    k.add_incoming(_I64(0), before)
    k.add_incoming(following, inside)
    b.cbranch(b.icmp_signed("<", following, count), inside, after)
    b.position_at_end(after)
    return results


def _make_tile(tokens: int, bits: int) -> Callable[..., None]:
    """tile(w, w_stride, x, x_stride, k, out): out[t, r] += sum of w[r, :k] * x[t, :k], 4 rows r.

    Everything is an address or a count of bytes or weights: w holds weights of 16, 8 or 4 bits, x
    int16, out int32 [tokens, 4]; k is a positive multiple of 16, of 32 for 4 bits.
    """
    vectors = 2 if bits == 4 else 1

    def generate(context, b, signature, arguments):  # numba's interface of code generators
        w, w_stride, x, x_stride, count, out = arguments
        w_rows = [b.add(w, b.mul(w_stride, _I64(r))) for r in range(ROWS)]
        x_rows = [b.add(x, b.mul(x_stride, _I64(t))) for t in range(tokens)]

        def step(k: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            sums = list(sums)
            k_x, k_w = b.mul(k, _I64(2)), b.udiv(b.mul(k, _I64(bits)), _I64(8))
            xs = [
                [_vector(b, b.add(b.add(row, k_x), _I64(32 * v)), _SHORTS) for v in range(vectors)]
                for row in x_rows
            ]
            for r, row in enumerate(w_rows):
                weights = _widen(b, b.add(row, k_w), bits)
                for t in range(tokens):
                    for weight, activation in zip(weights, xs[t], strict=True):
                        product = _multiply_pairs(b, weight, activation)
                        sums[t * ROWS + r] = b.add(sums[t * ROWS + r], product)
            return sums

        sums = _loop(b, count, _LANES * vectors, tokens * ROWS, step)
        for t in range(tokens):
            address = b.add(out, _I64(16 * t))
            total = _totals(b, sums[ROWS * t : ROWS * (t + 1)])
            total = b.add(total, _vector(b, address, total.type))
            b.store(total, b.inttoptr(address, total.type.as_pointer())).align = 4
        return context.get_dummy_value()

    @intrinsic
    def tile(typing_context, w, w_stride, x, x_stride, k, out):
        return types.void(*[types.int64] * 6), generate

    return tile


@intrinsic
def pointer(typing_context, address):
    """An address as a pointer, for carray."""
    generate = lambda context, b, signature, args: b.inttoptr(args[0], _I8.as_pointer())  # noqa: E731
    return types.voidptr(types.int64), generate


@intrinsic
def prefetch(typing_context, address):
    """Have the cache line at an address, valid or not, brought near."""

    def generate(context, b, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0i8")
        read, second_cache, data = _I32(0), _I32(2), _I32(1)
        b.call(function, [b.inttoptr(args[0], _I8.as_pointer()), read, second_cache, data])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def claim(typing_context, address):
    """The number at an address, which is raised by one: no two threads get the same."""

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


def _make_tiles(bits: int) -> Callable[..., None]:
    """A tile for any number of tokens: tiles(w, w_stride, x, x_stride, k, out, tokens)."""
    one, two, three = (_make_tile(tokens, bits) for tokens in (1, 2, 3))

    @njit(inline="never")
    def tiles(w, w_stride, x, x_stride, k, out, tokens):
        for _ in range(tokens // 3):
            three(w, w_stride, x, x_stride, k, out)
            x += 3 * x_stride
            out += 3 * 16
        if tokens % 3 == 2:
            two(w, w_stride, x, x_stride, k, out)
        elif tokens % 3 == 1:
            one(w, w_stride, x, x_stride, k, out)

    return tiles


tiles4, tiles8, tiles16 = (_make_tiles(bits) for bits in (4, 8, 16))


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
