# SPDX-License-Identifier: Apache-2.0
"""ATB's attention over sequences that lie one after another, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from npu_emulator.kernels.attention import (
    attend,
    flash_attention,
    flash_attention_unpad,
    flash_attention_unpad_v2,
    flash_attention_v3,
)
from tests.emulator.attention_oracle import (
    DTYPES,
    Seen,
    assert_rounded_once,
    attention,
    causal,
    everything,
    parts,
    random,
)

HEADS = [(4, 4, 16), (6, 2, 32), (8, 1, 8)]
LENGTHS = [[5, 1, 9], [7]]


def tensors(
    lengths: list[int], heads: tuple[int, int, int], dtype: torch.dtype, padding: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """query, key, value, and an output of sevens; the last `padding` tokens are of no sequence."""
    tokens = sum(lengths) + padding
    query = random(tokens, heads[0], heads[2], dtype=dtype)
    key, value = (random(tokens, heads[1], heads[2], dtype=dtype, seed=seed) for seed in (1, 2))
    return query, key, value, torch.full_like(query, 7)


def check(
    out: Tensor, qkv: tuple[Tensor, Tensor, Tensor], lengths: list[int], scale: float, rule
) -> None:
    start = 0
    for n, q, k, v in zip(lengths, *(parts(x, lengths) for x in qkv), strict=True):
        seen: Seen = rule(n)
        assert_rounded_once(out[start : start + n], attention(q, k, v, scale, seen))
        start += n


def compressed() -> Tensor:
    return torch.ones(2048, 2048, dtype=torch.float16).triu_(1) * -10000.0


def to_nz(mask: Tensor) -> Tensor:
    """(rows, columns) -> (1, columns / 16, rows, 16)"""
    rows, columns = mask.shape
    return mask.view(rows, columns // 16, 16).transpose(0, 1).unsqueeze(0).contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_unpad_sees_its_own_sequence_whole(lengths, heads, dtype: torch.dtype) -> None:
    q, k, v, out = tensors(lengths, heads, dtype, padding=3)
    seq_len = torch.tensor(lengths, dtype=torch.int32)
    assert flash_attention_unpad(q, k, v, seq_len, 0.3, heads[0], heads[1], out) is None
    check(out, (q, k, v), lengths, 0.3, lambda n: everything)
    assert bool((out[sum(lengths) :] == 7).all())
    again = torch.empty_like(out[: sum(lengths)])
    flash_attention_unpad_v2(q, k, v, seq_len, 0.3, *heads[:2], kernel_type=2, out=again)
    assert torch.equal(again, out[: sum(lengths)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("nz", [False, True])
def test_v3_is_causal(heads, nz: bool, dtype: torch.dtype) -> None:
    lengths = [5, 1, 9]
    q, k, v, out = tensors(lengths, heads, dtype, padding=2)
    mask = to_nz(compressed()) if nz else compressed()
    seq_len = torch.tensor(lengths, dtype=torch.int32)
    flash_attention_v3(q, k, v, mask, seq_len, 0.2, heads[0], heads[1], out=out)
    check(out, (q, k, v), lengths, 0.2, lambda n: causal(n, n))
    assert bool((out[15:] == 7).all())


def test_v3_with_flat_heads_equals_split_ones() -> None:
    q, k, v, out = tensors([6, 4], (4, 2, 16), torch.float16)
    flat, seq_len = torch.empty(10, 64, dtype=torch.float16), torch.tensor([6, 4])
    flash_attention_v3(q, k, v, compressed(), seq_len, 0.25, 4, 2, out=out)
    q, k, v = (x.flatten(1) for x in (q, k, v))
    flash_attention_v3(q, k, v, compressed(), seq_len, 0.25, 4, 2, out=flat)
    assert torch.equal(flat.view(10, 4, 16), out)


def test_v3_refuses_other_masks() -> None:
    q, k, v, out = tensors([4], (2, 2, 8), torch.float16)
    for mask, words in (
        (torch.zeros(2048, 2048), "upper triangle"),
        (compressed().t(), "upper triangle"),
        (to_nz(torch.ones(2048, 2048)), "upper triangle"),
        (compressed()[:128, :128], "2048 x 2048"),
    ):
        with pytest.raises(ValueError, match=words):
            flash_attention_v3(q, k, v, mask, torch.tensor([4]), 1.0, 2, 2, out=out)
    with pytest.raises(ValueError, match="mask_type"):
        flash_attention_v3(
            q, k, v, compressed(), torch.tensor([4]), 1.0, 2, 2, mask_type=2, out=out
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("form", ["2d", "3d", "nz"])
def test_flash_attention_adds_its_mask(heads, form: str, dtype: torch.dtype) -> None:
    lengths = [5, 1, 9]
    q, k, v, out = tensors(lengths, heads, dtype)
    whole = random(16, 32, seed=4).half()
    whole[:, 0] = 0
    whole[torch.ones(16, 32, dtype=torch.bool).triu_(1)] = -torch.inf
    mask = {"2d": whole, "3d": whole[None], "nz": to_nz(whole)}[form]
    flash_attention(q, k, v, mask, torch.tensor(lengths), 0.2, heads[0], heads[1], out)
    check(out, (q, k, v), lengths, 0.2, lambda n: lambda i, j: float(whole[i, j]))


def test_heads_must_divide() -> None:
    q, k = torch.ones(2, 4, 8), torch.ones(2, 3, 8)
    with pytest.raises(ValueError, match="share"):
        attend(torch.empty_like(q), q, k, k, 1.0)


@pytest.mark.parametrize(("rows", "columns"), [(3, 8), (8, 3), (1, 6), (4, 1), (4, 4), (1, 1)])
def test_the_last_query_is_the_last_key(rows: int, columns: int) -> None:
    q, k, v = random(rows, 4, 16), random(columns, 2, 16, seed=1), random(columns, 2, 8, seed=2)
    out = torch.full((rows, 4, 8), 7.0)
    attend(out, q, k, v, 0.5, causal=True)
    assert_rounded_once(out, attention(q, k, v, 0.5, causal(rows, columns)))


def test_no_key_gives_zeros_and_no_query_nothing() -> None:
    out = torch.full((3, 2, 8), 7.0)
    attend(out, torch.ones(3, 2, 8), torch.ones(0, 2, 8), torch.ones(0, 2, 8), 1.0)
    assert not bool(out.any())
    attend(out[:0], torch.ones(0, 2, 8), torch.ones(3, 2, 8), torch.ones(3, 2, 8), 1.0)


def test_long_sequences() -> None:
    """The blocks in which a long sequence is worked through do not show."""
    q, k, v = random(700, 2, 16), random(900, 1, 16, seed=1), random(900, 1, 16, seed=2)
    out = torch.empty_like(q)
    attend(out, q, k, v, 0.25, causal=True)
    some = [0, 1, 127, 128, 511, 512, 699]
    for i in some:
        expected = attention(q[i : i + 1], k[: 201 + i], v[: 201 + i], 0.25, everything)
        assert_rounded_once(out[i : i + 1], expected)
