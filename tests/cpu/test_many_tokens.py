# SPDX-License-Identifier: Apache-2.0
"""Products that are cut in chunks: of tokens, of columns and of rows, with every scale."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vllm_glm41v_npu.cpu.kernels import (
    int8_linear,
    int8_matmul,
    ops,
    pack_weight,
    quantize_per_token,
)


def random(rows: int, columns: int, share: float = 1.0) -> Tensor:
    """int8 of which a `share` is outside of 4 bits."""
    generator = torch.Generator().manual_seed(rows)
    values = torch.randint(-128, 128, (rows, columns), generator=generator, dtype=torch.int8)
    large = torch.rand(values.shape, generator=generator) < share
    return torch.where(large, values, values // 16)


def scales(tokens: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """A scale of each channel and each token, and a bias; no two alike."""
    generator = torch.Generator().manual_seed(tokens)
    channel = torch.rand(rows, generator=generator) + 0.5
    bias = torch.randint(-(2**20), 2**20, (rows,), generator=generator, dtype=torch.int32)
    return channel, bias, torch.rand(tokens, generator=generator) + 0.5


def exact(x: Tensor, weight: Tensor, channel: Tensor, bias: Tensor, token: Tensor) -> Tensor:
    sums = x.double() @ weight.double().t() + bias
    return (sums * channel.double() * token.double()[:, None]).float()


@pytest.mark.parametrize("form", ("int8", "int4"))
@pytest.mark.parametrize(("tokens", "columns"), [(1100, 2048), (600, 9001), (513, 4097)])
def test_scales_of_many_tokens_and_columns(
    form: str, tokens: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards each token's own scale beyond 512 tokens, and chunks scaled once."""
    monkeypatch.setattr(ops, "multiplies_in_full", lambda: False)
    rows = 256 * torch.get_num_threads() + 70
    x, weight = random(tokens, columns), random(rows, columns, 0.02)
    channel, bias, token = scales(tokens, rows)
    packed = pack_weight(weight, form)  # type: ignore[arg-type]
    result = int8_linear(x, packed, channel, bias, token)
    assert torch.equal(result, exact(x, weight, channel, bias, token))


@pytest.mark.parametrize("form", ("int8", "int4"))
def test_scales_of_many_rows(form: str) -> None:
    """Guards more rows than PyTorch's product takes at a time, with outliers in all of them."""
    x, weight = random(40, 200), random(8300, 200, 0.02)
    channel, bias, token = scales(40, 8300)
    packed = pack_weight(weight, form)  # type: ignore[arg-type]
    result = int8_linear(x, packed, channel, bias, token)
    assert torch.equal(result, exact(x, weight, channel, bias, token))
    assert torch.equal(int8_matmul(x, packed).double(), x.double() @ weight.double().t())


@pytest.mark.parametrize("tokens", (1, 40))
def test_outliers_beyond_the_range_of_signed_numbers(tokens: int) -> None:
    """Guards columns from 32,768 on, whose numbers are negative in 16 bits."""
    weight = torch.zeros(3, 50001, dtype=torch.int8)
    places = [0, 1023, 1024, 32767, 32768, 40001, 50000]
    weight[1, places] = torch.tensor([8, -9, 100, 127, -128, 50, 77], dtype=torch.int8)
    packed, x = pack_weight(weight), random(tokens, 50001)
    assert packed.form == "int4"
    assert torch.equal(packed.unpack(), weight)
    assert torch.equal(int8_matmul(x, packed).double(), x.double() @ weight.double().t())


def test_the_ends_of_four_bits_are_no_outliers() -> None:
    """Guards -8 and 7, which fit, and -9 and 8, which do not."""
    weight = torch.tensor([[-8, 7] * 50, [-9, 8] * 50], dtype=torch.int8)
    packed = pack_weight(weight, "int4")
    assert packed.outliers is not None and sorted(set(packed.outliers.tolist())) == [-9, 8]
    assert len(packed.outliers) == 100
    assert torch.equal(packed.unpack(), weight)


def test_tokens_are_quantized_by_their_own_largest_value() -> None:
    """Guards the scale's divisor and the rows that each scale belongs to."""
    x = torch.tensor([[127.0, -63.5, 1.0], [-254.0, 2.0, 127.0], [0.0, 0.0, 0.0]])
    x_q, scale = quantize_per_token(x)
    assert scale.tolist() == [1.0, 2.0, 0.0]
    assert x_q.tolist() == [[127, -64, 1], [-127, 1, 64], [0, 0, 0]]
