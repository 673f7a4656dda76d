# SPDX-License-Identifier: Apache-2.0
"""npu_fused_infer_attention_score in its layouts, sparse modes and caches, against float64."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor

from npu_emulator.kernels.fused_attention import (
    fused_infer_attention_score,
    fused_infer_attention_score_get_max_workspace,
    fused_infer_attention_score_out,
)
from tests.emulator.attention_oracle import (
    DTYPES,
    Pages,
    Seen,
    assert_rounded_once,
    attention,
    causal,
    everything,
    parts,
    random,
)

HEADS = [(4, 4, 16), (6, 2, 32), (8, 1, 16)]
MASK = torch.ones(2048, 2048, dtype=torch.int8).triu_(1)


def tensors(
    rows: list[int],
    columns: list[int],
    heads: tuple[int, int, int],
    dtype: torch.dtype,
    pad: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    query = random(sum(rows) + pad, heads[0], heads[2], dtype=dtype)
    key, value = (
        random(sum(columns) + pad, heads[1], heads[2], dtype=dtype, seed=seed) for seed in (1, 2)
    )
    return query, key, value


def window(rows: int, columns: int, before: int, after: int) -> Seen:
    """Mode 4: up to `before` tokens back and `after` on, the last query being the last key."""

    def seen(i: int, j: int) -> float:
        distance = j - (columns - rows + i)
        return 0.0 if -before <= distance <= after else -torch.inf

    return seen


def rule(mode: int, rows: int, columns: int) -> Seen:
    if mode == 0:
        return everything
    if mode == 2:
        return lambda i, j: 0.0 if j <= i else -torch.inf
    return causal(rows, columns) if mode == 3 else window(rows, columns, 4, 1)


def options(mode: int, heads: tuple[int, int, int]) -> dict[str, Any]:
    given: dict[str, Any] = {"num_heads": heads[0], "num_key_value_heads": heads[1]}
    given |= {"scale": 0.3, "sparse_mode": mode, "inner_precise": 1}
    if mode:
        given["atten_mask"] = MASK
    if mode == 4:
        given |= {"pre_tokens": 4, "next_tokens": 1}
    return given


def check(out: Tensor, qkv, rows: list[int], columns: list[int], mode: int) -> None:
    start = 0
    query, key, value = qkv
    for q, k, v in zip(parts(query, rows), parts(key, columns), parts(value, columns), strict=True):
        expected = attention(q, k, v, 0.3, rule(mode, len(q), len(k)))
        assert_rounded_once(out[start : start + len(q)], expected)
        start += len(q)
    assert not bool(out[start:].any())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("mode", [0, 2, 3, 4])
@pytest.mark.parametrize(
    ("rows", "columns"), [([5, 1, 9], [5, 1, 9]), ([2, 0, 3], [7, 0, 3]), ([6], [2])]
)
def test_tnd(rows, columns, mode: int, heads, dtype: torch.dtype) -> None:
    query, key, value = tensors(rows, columns, heads, dtype, pad=3)
    out, lse = fused_infer_attention_score(
        query,
        key,
        value,
        input_layout="TND",
        actual_seq_lengths=list(accumulate(rows)),
        actual_seq_lengths_kv=list(accumulate(columns)),
        **options(mode, heads),
    )
    assert out.dtype == dtype and out.shape == query.shape
    assert lse.dtype == torch.float32 and lse.shape == (0,)
    check(out, (query, key, value), rows, columns, mode)


COLUMNS = [11, 1, 16, 17]
ORDERS = {
    3: lambda cache: cache.flatten(2),  # (blocks, size, heads * dim), as vllm-ascend gives it
    4: lambda cache: cache.transpose(1, 2).contiguous(),  # (blocks, heads, size, dim)
    5: lambda cache: cache.unflatten(3, (-1, 16)).permute(0, 2, 3, 1, 4).contiguous(),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("mode", [0, 3, 4])
@pytest.mark.parametrize("order", [3, 4, 5])
@pytest.mark.parametrize("rows", [[4, 1, 16, 2], [1, 1, 1, 1]])
def test_tnd_on_a_paged_cache(rows, order: int, mode: int, heads, dtype: torch.dtype) -> None:
    """Chunked prefill and decode: here actual_seq_lengths_kv are no sums."""
    query, key, value = tensors(rows, COLUMNS, heads, dtype)
    query = torch.cat((query, random(2, *query.shape[1:], dtype=dtype)))
    caches = [Pages(COLUMNS, 8, parts(x, COLUMNS)) for x in (key, value)]
    arguments = (query, *(ORDERS[order](cache.nd) for cache in caches))
    given = options(mode, heads) | {
        "input_layout": "TND",
        "block_table": caches[0].table,
        "block_size": 8,
        "actual_seq_lengths": list(accumulate(rows)),
        "actual_seq_lengths_kv": COLUMNS + [0],
    }
    out, _ = fused_infer_attention_score(*arguments, **given)
    check(out, (query, key, value), rows, COLUMNS, mode)
    # The same into given tensors; the second is left alone unless asked for.
    workspace = fused_infer_attention_score_get_max_workspace(*arguments, **given)
    assert workspace.dtype == dtype
    targets = [torch.full_like(query, 7), torch.full((1,), 7, dtype=dtype)]
    results = fused_infer_attention_score_out(*arguments, **given, workspace=workspace, out=targets)
    assert [x.data_ptr() for x in results] == [x.data_ptr() for x in targets]
    assert torch.equal(targets[0], out) and float(targets[1]) == 7


def test_paged_equals_unpaged() -> None:
    heads = (6, 2, 32)
    query, key, value = tensors(COLUMNS, COLUMNS, heads, torch.float16)
    caches = [Pages(COLUMNS, 8, parts(x, COLUMNS)) for x in (key, value)]
    given = options(3, heads) | {"input_layout": "TND"}
    sums = list(accumulate(COLUMNS))
    unpaged, _ = fused_infer_attention_score(
        query, key, value, actual_seq_lengths=sums, actual_seq_lengths_kv=sums, **given
    )
    paged, _ = fused_infer_attention_score(
        query,
        *(cache.nd.flatten(2) for cache in caches),
        actual_seq_lengths=sums,
        actual_seq_lengths_kv=COLUMNS,
        block_table=caches[0].table,
        **given,
    )
    assert torch.equal(paged, unpaged)


def arrange(x: Tensor, layout: str) -> Tensor:
    """(batch, rows, heads, dim) in the order that `layout` names."""
    if layout == "BSH":
        return x.flatten(2)
    return x.permute(*("BSND".index(name) for name in layout)).contiguous()


@pytest.mark.parametrize("mode", [0, 3])
@pytest.mark.parametrize("lengths", [None, [7, 4]])
@pytest.mark.parametrize(
    "layout", ["BSH", "BSND", "BNSD", "BNSD_BSND", "BSH_BNSD", "BSND_NBSD", "BNSD_NBSD"]
)
def test_batches(layout: str, lengths: list[int] | None, mode: int) -> None:
    heads = (6, 2, 16)
    rows, columns = lengths or [7, 7], [9, 8] if lengths else [9, 9]
    query = random(2, 7, 6, 16, dtype=torch.float16)
    key, value = (random(2, 9, 2, 16, dtype=torch.float16, seed=seed) for seed in (1, 2))
    inside, _, outside = layout.partition("_")
    out, lse = fused_infer_attention_score(
        *(arrange(x, inside) for x in (query, key, value)),
        input_layout=layout,
        actual_seq_lengths=lengths,
        actual_seq_lengths_kv=columns if lengths else None,
        softmax_lse_flag=True,
        **options(mode, heads),
    )
    wanted = torch.zeros(2, 7, 6, 16, dtype=torch.float64)
    for b, (n, m) in enumerate(zip(rows, columns, strict=True)):
        qkv = (query[b, :n], key[b, :m], value[b, :m])
        wanted[b, :n] = attention(*qkv, 0.3, rule(mode, n, m))
    assert_rounded_once(out, arrange(wanted, outside or inside))
    assert lse.shape == (2, 6, 7, 1)


@pytest.mark.parametrize("layout", ["TND", "NTD", "TND_NTD", "NTD_TND"])
@pytest.mark.parametrize("mode", [0, 3])
def test_log_sum_exp(layout: str, mode: int) -> None:
    rows, columns, heads = [3, 4], [6, 5], (4, 2, 16)
    query, key, value = tensors(rows, columns, heads, torch.float32)
    inside, _, outside = layout.partition("_")
    arranged = [x if inside == "TND" else x.transpose(0, 1) for x in (query, key, value)]
    given = options(mode, heads) | {
        "input_layout": layout,
        "actual_seq_lengths": [3, 7],
        "actual_seq_lengths_kv": [6, 11],
        "softmax_lse_flag": True,
    }
    out, lse = fused_infer_attention_score(*arranged, **given)
    assert lse.shape == (7, 4, 1) and lse.dtype == torch.float32
    rows_first = out if (outside or inside) == "TND" else out.transpose(0, 1)
    check(rows_first, (query, key, value), rows, columns, mode)
    for t in range(7):
        first = t < 3
        k = key[:6] if first else key[6:]
        last = len(k) if mode == 0 else len(k) - (2 - t if first else 6 - t)
        for h in range(4):
            scores = 0.3 * (k[:last, h // 2].double() @ query[t, h].double())
            assert float(lse[t, h]) == pytest.approx(float(scores.exp().sum().log()), abs=1e-5)
    targets = [torch.empty_like(out), torch.empty_like(lse)]
    fused_infer_attention_score_out(*arranged, **given, out=targets)
    assert torch.equal(targets[0], out) and torch.equal(targets[1], lse)


@pytest.mark.parametrize("form", ["2d", "one", "each"])
@pytest.mark.parametrize("mode", [0, 1])
def test_a_mask_of_ones_own(mode: int, form: str) -> None:
    query = random(2, 5, 4, 16)
    key, value = random(2, 6, 4, 16, seed=1), random(2, 6, 4, 16, seed=2)
    masks = (random(2, 1, 16, 32, seed=3) > 0).to(torch.uint8)
    masks[..., 0] = 0
    if form != "each":
        masks = masks[:1]
    mask = masks[0, 0] if form == "2d" else masks
    # In mode 0 the window applies as well, counted from the first token.
    out, _ = fused_infer_attention_score(
        query, key, value, input_layout="BSND", num_heads=4, scale=0.3, atten_mask=mask,
        sparse_mode=mode, pre_tokens=3, next_tokens=1,
    )  # fmt: skip
    for b in range(2):
        rows = masks[b if form == "each" else 0, 0]

        def seen(i: int, j: int, rows: Tensor = rows) -> float:
            inside = mode == 1 or -3 <= j - i <= 1
            return 0.0 if inside and not rows[i, j] else -torch.inf

        assert_rounded_once(out[b], attention(query[b], key[b], value[b], 0.3, seen))


def test_one_query_in_a_batch_has_no_sparse_mode() -> None:
    """As the document says of a query of S = 1; with TND the mode holds for every length."""
    query, key, value = (random(1, n, 2, 16, seed=seed) for seed, n in enumerate((1, 9, 9)))
    given = {"num_heads": 2, "scale": 0.3, "atten_mask": MASK, "sparse_mode": 4}
    given |= {"pre_tokens": 2, "next_tokens": 0}
    out, _ = fused_infer_attention_score(query, key, value, input_layout="BSND", **given)
    assert_rounded_once(out[0], attention(query[0], key[0], value[0], 0.3, everything))
    out, _ = fused_infer_attention_score(
        query[0], key[0], value[0], input_layout="TND",
        actual_seq_lengths=[1], actual_seq_lengths_kv=[9], **given,
    )  # fmt: skip
    expected = attention(query[0], key[0, 6:], value[0, 6:], 0.3, everything)
    assert_rounded_once(out, expected)


def test_values_may_have_other_channels_than_keys() -> None:
    query, key, value = random(5, 2, 24), random(5, 2, 24, seed=1), random(5, 2, 16, seed=2)
    out, _ = fused_infer_attention_score(
        query, key, value, input_layout="TND", num_heads=2, scale=0.3,
        actual_seq_lengths=[5], actual_seq_lengths_kv=[5],
    )  # fmt: skip
    assert_rounded_once(out, attention(query, key, value, 0.3, everything))


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"sparse_mode": 3}, ValueError, "compressed"),
    ({"sparse_mode": 3, "atten_mask": MASK.t()}, ValueError, "triangle"),
    ({"sparse_mode": 3, "atten_mask": MASK[:64, :64]}, ValueError, "2048 x 2048"),
    ({"sparse_mode": 5, "atten_mask": MASK}, NotImplementedError, "sparse_mode 5"),
    ({"actual_seq_lengths": [3, 1]}, ValueError, "must not fall"),
    ({"actual_seq_lengths": [2, 4]}, ValueError, "1 lengths"),
    ({"pse_shift": MASK}, NotImplementedError, "position shifts"),
    ({"query_rope": MASK}, NotImplementedError, "rope"),
    ({"input_layout": "TDN"}, ValueError, "layout"),
    ({"block_table": MASK[:1, :1], "actual_seq_lengths_kv": None}, ValueError, "paged"),
    ({"block_table": MASK[:1, :1], "block_size": 16}, ValueError, "block_size"),
]


@pytest.mark.parametrize(("given", "error", "words"), REFUSED)
def test_what_has_no_meaning_is_refused(given, error: type[Exception], words: str) -> None:
    x = torch.ones(4, 2, 16)
    defaults = {"input_layout": "TND", "actual_seq_lengths": [4], "actual_seq_lengths_kv": [4]}
    with pytest.raises(error, match=words):
        fused_infer_attention_score(x, x, x, num_heads=2, **(defaults | given))
