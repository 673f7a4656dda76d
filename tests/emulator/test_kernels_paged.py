# SPDX-License-Identifier: Apache-2.0
"""ATB's operators on paged caches, of both orders, against float64 and the unpaged operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from npu_emulator.kernels.attention import flash_attention_v3
from npu_emulator.kernels.paged_attention import (
    paged_attention,
    paged_attention_get_workspace,
    paged_attention_splitfuse,
    paged_attention_splitfuse_v2,
    read_cache,
    reshape_and_cache,
)
from tests.emulator.attention_oracle import (
    DTYPES,
    Pages,
    assert_rounded_once,
    attention,
    causal,
    everything,
    parts,
    random,
)

HEADS = [(4, 4, 16), (6, 2, 32), (8, 1, 64)]
ORDERS = ["nd", "nz"]
LENGTHS = [11, 1, 16, 17]
COMPRESSED = torch.ones(2048, 2048, dtype=torch.float16).triu_(1) * -10000.0


def caches(heads: tuple[int, int, int], dtype: torch.dtype, order: str, size: int = 8):
    """key and value of all tokens, their caches, and the block table."""
    key, value = (
        random(sum(LENGTHS), heads[1], heads[2], dtype=dtype, seed=seed) for seed in (1, 2)
    )
    pages = [Pages(LENGTHS, size, parts(x, LENGTHS)) for x in (key, value)]
    return key, value, *(getattr(page, order) for page in pages), pages[0].table


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("order", ORDERS)
def test_reshape_and_cache(order: str, heads, dtype: torch.dtype) -> None:
    """Written slot by slot it is the cache that was built, and nothing else is touched."""
    key, value, key_cache, value_cache, table = caches(heads, dtype, order)
    pages = Pages(LENGTHS, 8, parts(key, LENGTHS))
    slots = torch.tensor(pages.slots(LENGTHS), dtype=torch.int32)
    skipped = torch.tensor([0, 12, len(slots) - 1])
    slots[skipped] = -1
    empty = torch.full_like(key_cache, torch.nan), torch.full_like(value_cache, torch.nan)
    assert reshape_and_cache(key, value, empty[0], empty[1], slots) is None
    for x, cache, filled in zip((key, value), empty, (key_cache, value_cache), strict=True):
        written = ~cache.isnan()
        assert torch.equal(cache[written], filled[written])
        assert int(written.sum()) == (len(slots) - len(skipped)) * x[0].numel()
    full = torch.full_like(key_cache, torch.nan), torch.full_like(value_cache, torch.nan)
    slots = torch.tensor(pages.slots(LENGTHS), dtype=torch.int32)
    reshape_and_cache(key, value, full[0], full[1], slots)
    torch.testing.assert_close(full, (key_cache, value_cache), equal_nan=True, rtol=0, atol=0)


def test_reshape_and_cache_where_all_is_padding() -> None:
    key = torch.ones(3, 2, 16)
    cache = torch.zeros(4, 8, 2, 16)
    reshape_and_cache(key, key, cache, cache.clone(), torch.full((3,), -1, dtype=torch.int32))
    assert not bool(cache.any())


def test_reshape_and_cache_of_fewer_slots_than_tokens_and_into_a_strided_cache() -> None:
    key = random(5, 2, 16)
    both = torch.zeros(4, 2, 8, 2, 16)  # a block's keys, then its values
    slots = torch.tensor([9, 31, 0], dtype=torch.int32)
    reshape_and_cache(key, key + 1, both[:, 0], both[:, 1], slots)
    assert torch.equal(both[1, 0, 1], key[0]) and torch.equal(both[3, 1, 7], key[1] + 1)
    assert torch.equal(both[0, 0, 0], key[2]) and int(both.count_nonzero()) == 3 * 64


def test_a_cache_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        read_cache(torch.zeros(4, 8, 3, 16), torch.tensor([0]), 3, 2, 16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("flat", [False, True])
def test_paged_attention(order: str, heads, dtype: torch.dtype, flat: bool) -> None:
    key, value, key_cache, value_cache, table = caches(heads, dtype, order)
    query = random(5, heads[0], heads[2], dtype=dtype)  # one more than there are sequences
    out = torch.full_like(query, 7)
    lens = torch.tensor(LENGTHS, dtype=torch.int32)
    q, o = (query.flatten(1), out.view(5, -1)) if flat else (query, out)
    arguments = (q, key_cache, value_cache, heads[1], heads[0], 0.3, table, lens, o)
    workspace = paged_attention_get_workspace(*arguments)
    assert workspace.dtype == torch.uint8
    assert paged_attention(*arguments, workspace=workspace) is None
    for i, (k, v) in enumerate(zip(parts(key, LENGTHS), parts(value, LENGTHS), strict=True)):
        expected = attention(query[i : i + 1], k, v, 0.3, everything)
        assert_rounded_once(out[i : i + 1], expected)
    assert bool((out[4] == 7).all())


def test_a_sequence_of_no_token_gives_zeros() -> None:
    cache, out = torch.full((2, 8, 1, 16), torch.nan), torch.ones(1, 2, 16)
    table, lens = torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    paged_attention(torch.ones(1, 2, 16), cache, cache, 1, 2, 1.0, table, lens, out)
    assert not bool(out.any())


QUERIES = [[4, 1, 16, 2], [1, 1, 1, 1], [0, 1, 5, 17]]  # chunks, decode, and a sequence not run


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rows", QUERIES)
def test_splitfuse(order: str, heads, rows: list[int], dtype: torch.dtype) -> None:
    key, value, key_cache, value_cache, table = caches(heads, dtype, order)
    query = random(sum(rows) + 2, heads[0], heads[2], dtype=dtype)
    out = torch.full_like(query, 7)
    lens, seq_len = torch.tensor(LENGTHS, dtype=torch.int32), torch.tensor(rows, dtype=torch.int32)
    shared = (query, key_cache, value_cache, table, lens)
    numbers = (seq_len, heads[1], heads[0], 0.3)
    paged_attention_splitfuse_v2(*shared, COMPRESSED, *numbers, out=out)
    triples = zip(parts(query, rows), parts(key, LENGTHS), parts(value, LENGTHS), strict=True)
    start = 0
    for q, k, v in triples:
        expected = attention(q, k, v, 0.3, causal(len(q), len(k)))
        assert_rounded_once(out[start : start + len(q)], expected)
        start += len(q)
    assert bool((out[start:] == 7).all())
    again = torch.full_like(query, 7)
    paged_attention_splitfuse(*shared, row_mask(rows, order), *numbers, again)
    torch.testing.assert_close(again, out, rtol=2**-7, atol=1e-5)


def row_mask(rows: list[int], order: str) -> Tensor:
    """A row of the mask for each token, padded to sixteens."""
    positions = [length - n + i for n, length in zip(rows, LENGTHS, strict=True) for i in range(n)]
    mask = torch.zeros(-(-len(positions) // 16) * 16, 32, dtype=torch.float16)
    for row, position in zip(mask, positions, strict=False):
        row[position + 1 :] = -torch.inf
    if order == "nd":
        return mask
    return mask.view(-1, 2, 16).transpose(0, 1).unsqueeze(0).contiguous()


def test_splitfuse_adds_the_rows_of_its_mask() -> None:
    key, value, key_cache, value_cache, table = caches((4, 2, 16), torch.float32, "nd")
    rows = [4, 1, 3, 2]
    query = random(10, 4, 16)
    mask = random(10, 32, seed=6)
    out = torch.empty_like(query)
    lens, seq_len = torch.tensor(LENGTHS), torch.tensor(rows)
    paged_attention_splitfuse(
        query, key_cache, value_cache, table, lens, mask, seq_len, 2, 4, 0.3, out
    )
    start = 0
    triples = zip(parts(query, rows), parts(key, LENGTHS), parts(value, LENGTHS), strict=True)
    for q, k, v in triples:
        bias = mask[start : start + len(q)].tolist()

        def seen(i: int, j: int, bias: list[list[float]] = bias) -> float:
            return bias[i][j]

        assert_rounded_once(out[start : start + len(q)], attention(q, k, v, 0.3, seen))
        start += len(q)


@pytest.mark.parametrize("order", ORDERS)
def test_a_whole_prompt_from_the_cache_equals_the_unpaged_operator(order: str) -> None:
    key, value, key_cache, value_cache, table = caches((6, 2, 32), torch.float16, order)
    query = random(sum(LENGTHS), 6, 32, dtype=torch.float16)
    lens = torch.tensor(LENGTHS, dtype=torch.int32)
    paged, unpaged = torch.empty_like(query), torch.empty_like(query)
    caches_ = (query, key_cache, value_cache, table, lens, COMPRESSED, lens)
    paged_attention_splitfuse_v2(*caches_, 2, 6, 0.2, out=paged)
    flash_attention_v3(query, key, value, COMPRESSED, lens, 0.2, 6, 2, out=unpaged)
    assert torch.equal(paged, unpaged)


def test_splitfuse_v2_refuses_other_masks() -> None:
    key, _, key_cache, value_cache, table = caches((4, 2, 16), torch.float32, "nd")
    lens, out = torch.tensor(LENGTHS), torch.empty(4, 4, 16)
    rest = (torch.ones(4, dtype=torch.int32), 2, 4, 1.0)
    with pytest.raises(ValueError, match="upper triangle"):
        paged_attention_splitfuse_v2(
            out, key_cache, value_cache, table, lens, COMPRESSED * 0, *rest, out=out
        )
    with pytest.raises(ValueError, match="mask_type"):
        paged_attention_splitfuse_v2(
            out, key_cache, value_cache, table, lens, COMPRESSED, *rest, mask_type=3, out=out
        )
