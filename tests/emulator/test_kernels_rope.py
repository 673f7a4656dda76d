# SPDX-License-Identifier: Apache-2.0
"""Rotary embeddings against rotations of complex numbers in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from npu_emulator.kernels.rope import (
    apply_rotary_pos_emb,
    mrope,
    rotary_embedding,
    rotary_mul,
)
from tests.emulator.attention_oracle import assert_rounded_once, random

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
MODES = ["half", "interleave"]


def channels(dim: int, mode: str) -> list[tuple[int, int]]:
    """The two channels of every pair."""
    if mode == "half":
        return [(i, i + dim // 2) for i in range(dim // 2)]
    return [(2 * i, 2 * i + 1) for i in range(dim // 2)]


def turn(x: Tensor, cos: Tensor, sin: Tensor, mode: str) -> Tensor:
    """Turn the first channels of x by complex numbers cos + i sin, one for each pair."""
    out = x.double().clone()
    for pair, (a, b) in enumerate(channels(2 * cos.shape[-1], mode)):
        point = torch.complex(x[..., a].double(), x[..., b].double())
        point = point * torch.complex(cos[..., pair].double(), sin[..., pair].double())
        out[..., a], out[..., b] = point.real, point.imag
    return out


def spread(x: Tensor, mode: str) -> Tensor:
    """A value for each pair -> one for each channel."""
    out = x.new_empty(*x.shape[:-1], 2 * x.shape[-1])
    for pair, (a, b) in enumerate(channels(out.shape[-1], mode)):
        out[..., a] = out[..., b] = x[..., pair]
    return out


def angles(*shape: int, dtype: torch.dtype, seed: int = 9) -> tuple[Tensor, Tensor]:
    angle = random(*shape, seed=seed) * 3
    return angle.cos().to(dtype), angle.sin().to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("shape", "pairs"),
    [((2, 7, 3, 64), (1, 7, 1, 32)), ((7, 3, 16), (7, 1, 8)), ((2, 3, 7, 8), (2, 1, 7, 4))],
)
def test_rotary_mul(shape, pairs, mode: str, dtype: torch.dtype) -> None:
    x = random(*shape, dtype=dtype)
    before = x.clone()
    cos, sin = angles(*pairs, dtype=dtype)
    result = rotary_mul(x, spread(cos, mode), spread(sin, mode), mode)
    assert result.dtype == dtype and torch.equal(x, before)
    assert_rounded_once(result, turn(x, cos, sin, mode))


def test_rotary_mul_has_a_cos_and_a_sin_for_each_channel() -> None:
    x, cos, sin = (random(2, 3, 4, 8, seed=seed) for seed in range(3))
    a, b = x.double().chunk(2, -1)
    expected = x.double() * cos.double() + torch.cat((-b, a), -1) * sin.double()
    assert_rounded_once(rotary_mul(x, cos, sin), expected)


@pytest.mark.parametrize("mode", MODES)
def test_rotary_mul_by_a_matrix(mode: str) -> None:
    x = random(1, 5, 2, 16)
    cos, sin = angles(1, 5, 1, 8, dtype=torch.float32)
    rotate = torch.zeros(16, 16)
    for a, b in channels(16, mode):
        rotate[b, a], rotate[a, b] = -1, 1
    result = rotary_mul(x, spread(cos, mode), spread(sin, mode), "half", rotate)
    assert_rounded_once(result, turn(x, cos, sin, mode))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", ["BSND", "BNSD", "SBND", "TND"])
def test_apply_rotary_pos_emb_in_place(layout: str, mode: str, dtype: torch.dtype) -> None:
    sizes = {"B": 2, "S": 5, "T": 5, "N": 4, "D": 64}
    query = random(*(sizes[name] for name in layout), dtype=dtype)
    sizes["N"] = 2
    key = random(*(sizes[name] for name in layout), dtype=dtype, seed=1)
    sizes |= {"N": 1, "D": 32}
    cos, sin = angles(*(sizes[name] for name in layout), dtype=dtype)
    expected = [turn(x, cos, sin, mode) for x in (query, key)]
    results = apply_rotary_pos_emb(query, key, spread(cos, mode), spread(sin, mode), layout, mode)
    for x, result, wanted in zip((query, key), results, expected, strict=True):
        assert result.data_ptr() == x.data_ptr()
        assert_rounded_once(x, wanted)


def test_unknown_rotations_are_refused() -> None:
    x = torch.ones(1, 1, 1, 8)
    with pytest.raises(ValueError, match="quarter"):
        rotary_mul(x, x, x, "quarter")
    with pytest.raises(ValueError, match="whole heads"):
        apply_rotary_pos_emb(x, x, x[..., :4], x[..., :4])


def rotary_case(dtype: torch.dtype, head: int, rotary: int, tokens: int = 6):
    cache = torch.cat(angles(20, rotary // 2, dtype=dtype), -1)
    query = random(tokens, 4 * head, dtype=dtype)
    key = random(tokens, 2 * head, dtype=dtype, seed=1)
    return query, key, cache


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize(("head", "rotary"), [(16, 16), (128, 64)])
@pytest.mark.parametrize("three_dimensions", [False, True])
def test_rotary_embedding_in_place(dtype, neox: bool, head, rotary, three_dimensions: bool) -> None:
    query, key, cache = rotary_case(dtype, head, rotary)
    positions = torch.tensor([3, 0, 19, 7, 7, 1])
    cos, sin = cache[positions].unsqueeze(1).chunk(2, -1)
    mode = "half" if neox else "interleave"
    expected = [turn(x.view(6, -1, head), cos, sin, mode) for x in (query, key)]
    if three_dimensions:
        query, key = query.view(6, -1, head), key.view(6, -1, head)
    assert rotary_embedding(positions, query, key, head, cache, neox) is None
    for x, wanted in zip((query, key), expected, strict=True):
        assert_rounded_once(x.view(6, -1, head), wanted)
    # What is not turned is not touched.
    assert torch.equal(query.view(6, -1, head)[..., rotary:].double(), expected[0][..., rotary:])


def section_axis(pair: int, sections: list[int], cache_mode: str) -> int:
    """Which axis of the positions turns that pair."""
    if cache_mode == "default":
        ends = torch.tensor(sections).cumsum(0)
        return int((ends <= pair).sum())
    return pair % 3 if pair < 3 * sections[1] and pair % 3 else 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cache_mode", ["default", "interleave"])
@pytest.mark.parametrize(
    ("head", "rotary", "sections"),
    [(128, 64, [8, 12, 12]), (32, 32, [4, 6, 6]), (32, 32, [8, 4, 4])],
)
def test_mrope(dtype, mode: str, cache_mode: str, head, rotary, sections: list[int]) -> None:
    query, key, cache = rotary_case(dtype, head, rotary)
    positions = torch.tensor([[0, 1, 2, 3, 4, 19], [5, 5, 0, 2, 2, 1], [9, 8, 7, 6, 5, 4]])
    cos, sin = torch.empty(6, rotary // 2), torch.empty(6, rotary // 2)
    for pair in range(rotary // 2):
        rows = cache[positions[section_axis(pair, sections, cache_mode)]].float()
        cos[:, pair], sin[:, pair] = rows[:, pair], rows[:, rotary // 2 + pair]
    before = query.clone(), key.clone()
    results = mrope(
        positions,
        query,
        key,
        cache,
        head,
        mrope_section=sections,
        rotary_mode=mode,
        cache_mode=cache_mode,
    )
    for result, x in zip(results, before, strict=True):
        expected = turn(x.view(6, -1, head), cos.unsqueeze(1), sin.unsqueeze(1), mode)
        assert result.shape == x.shape and result.dtype == dtype
        assert_rounded_once(result.view(6, -1, head), expected)
    assert torch.equal(query, before[0]) and torch.equal(key, before[1])


@pytest.mark.parametrize("mode", MODES)
def test_mrope_with_one_row_of_positions(mode: str) -> None:
    query, key, cache = rotary_case(torch.float32, 32, 16)
    positions = torch.tensor([4, 2, 0, 19, 5, 5])
    q, k = mrope(positions, query, key, cache, 32, mrope_section=[0, 0, 0], rotary_mode=mode)
    rotary_embedding(positions, query, key, 32, cache, mode == "half")
    assert torch.equal(q, query) and torch.equal(k, key)


def test_mrope_with_four_sections() -> None:
    query, key, cache = rotary_case(torch.float32, 16, 16)
    positions = torch.arange(24).view(4, 6) % 20
    cos, sin = torch.empty(6, 8), torch.empty(6, 8)
    for pair in range(8):
        rows = cache[positions[pair // 2]]
        cos[:, pair], sin[:, pair] = rows[:, pair], rows[:, 8 + pair]
    q, _ = mrope(positions, query, key, cache, 16, mrope_section=[2, 2, 2, 2])
    expected = turn(query.view(6, -1, 16), cos.unsqueeze(1), sin.unsqueeze(1), "half")
    assert_rounded_once(q.view(6, -1, 16), expected)
    with pytest.raises(ValueError, match="mrope_section"):
        mrope(positions, query, key, cache, 16)
