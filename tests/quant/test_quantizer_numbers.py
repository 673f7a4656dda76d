# SPDX-License-Identifier: Apache-2.0
"""The quantizer's arithmetic: scales, ranges, smoothing, and rounding to 4 bits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from vllm_glm41v_npu.quant.quantizer import QuantizerError, Settings, builtin
from vllm_glm41v_npu.quant.quantizer.arithmetic import (
    dynamic_input,
    input_scale,
    quant_bias,
    round_up,
    weight_scale,
)
from vllm_glm41v_npu.quant.quantizer.observers import ESTIMATORS, Observer, choose_rows
from vllm_glm41v_npu.quant.quantizer.smoothing import fold, smooth
from vllm_glm41v_npu.quant.quantizer.sparse import round_compensated, round_sparse, scale_of_bulk

DTYPES = (torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def observed(x: Tensor, with_products: bool = False) -> Observer:
    observer = Observer(with_products)
    for part in x.chunk(3):
        observer.see(part, torch.arange(len(part)))
    return observer


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounded_scales_are_never_smaller(dtype):
    """Guards against a rounded scale that clips the largest value, or is zero in float16."""
    values = torch.cat((torch.rand(1000), torch.logspace(-9, 3, 100), torch.zeros(1)))
    rounded = round_up(values, dtype)
    assert (rounded >= values).all()
    assert (rounded > 0).all()
    assert torch.equal(rounded, rounded.to(dtype).float())
    normal = values > torch.finfo(dtype).tiny
    assert (rounded[normal] <= values[normal] * (1 + 2 * torch.finfo(dtype).eps)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("low", "high"), [(-3.0, 5.0), (0.0, 7.0), (2.0, 3.0), (-1e-9, 0.0), (0, 0)]
)
def test_input_range_is_covered(dtype, low, high):
    """Guards against ranges that clip their own ends, lose zero, or have no finite reciprocal."""
    scale = input_scale(torch.tensor(float(low)), torch.tensor(float(high)), dtype)
    ends = torch.tensor([low, high, 0.0])
    error = (scale.restore(scale.quantize(ends)) - ends).abs()
    assert (error <= scale.scale / 2 + 1e-6).all()
    assert error[2] == 0
    assert torch.isfinite(1 / scale.scale.to(dtype))
    assert scale.clipped_share(ends) == 0
    assert scale.offset == scale.offset.round()


def test_row_of_zeros_keeps_its_bias():
    """Guards against a bias lost in the steps of a row that has no weights."""
    weight = torch.randn(4, 8)
    weight[2] = 0
    scale = weight_scale(weight)
    bias = torch.tensor([0.1, -0.2, 0.3, 0.0])
    deq = 0.02 * scale[:, 0]
    integers = (weight / scale).round()
    steps = quant_bias(integers, bias, deq, torch.tensor([0.0]), "layer")
    assert ((steps * deq - bias).abs() <= deq / 2 * 1.001).all()
    assert (weight_scale(torch.zeros(2, 3)) > 0).all()


def test_bias_that_does_not_fit_is_named():
    """Guards against an int32 that wraps around in silence."""
    deq, bias = torch.full((2,), 1e-9), torch.full((2,), 50.0)
    with pytest.raises(QuantizerError, match="layers.3.q_proj has a bias of up to 50"):
        quant_bias(torch.ones(2, 4), bias, deq, torch.zeros(1), "layers.3.q_proj")


def test_tokens_of_zeros_stay_zeros():
    """Guards against NaN where a token is all zeros."""
    x = torch.stack((torch.zeros(8), torch.randn(8)))
    assert not dynamic_input(x)[0].any()
    assert (dynamic_input(x) - x).abs().max() <= x.abs().max() / 254 * 1.001


def test_estimators():
    """Guards against estimators that ignore outliers they must keep, or keep all of them.

    One value in 200,000 is fifty times the others: minmax covers it, percentile does not, and mse
    is between, with the least error of the three.
    """
    x = torch.randn(2000, 100)
    x[7, 3] = 200.0
    observer = observed(x)
    ranges = {name: estimate(observer, torch.float16) for name, estimate in ESTIMATORS.items()}
    assert ranges["minmax"][1] >= 200
    assert 3 < ranges["percentile"][1] < 5
    assert -5 < ranges["percentile"][0] < -3
    errors = {}
    for name, (low, high) in ranges.items():
        scale = input_scale(low, high, torch.float16)
        errors[name] = (scale.restore(scale.quantize(x)) - x).square().mean()
    assert errors["mse"] <= errors["minmax"]
    assert errors["mse"] <= errors["percentile"]


def test_observer_sees_all_and_keeps_some():
    """Guards against extremes or products of kept rows alone."""
    x = torch.randn(300, 5)
    observer = Observer(with_products=True)
    for part in x.chunk(3):
        observer.see(part, choose_rows(len(part), 10, seed=1))
    assert torch.equal(observer.low, x.amin(0))
    assert torch.equal(observer.high, x.amax(0))
    torch.testing.assert_close(observer.products, x.T @ x)
    assert 30 <= len(observer.rows) <= 42
    assert torch.equal(observer.rows[:4], x[:4])
    scale = torch.rand(5) + 0.5
    again, other = observer.smoothed(scale), observed(x / scale, with_products=True)
    torch.testing.assert_close(again.high, other.high)
    torch.testing.assert_close(again.products, other.products)


@pytest.mark.parametrize("dtype", DTYPES)
def test_folding_changes_nothing(dtype):
    """Guards against a norm that is rounded differently from what its layers were scaled by."""
    norm, scale = torch.randn(64), torch.rand(64) * 5 + 0.1
    norm[3] = 0
    norm[4] = 1e-30
    divided, exact = fold(norm, scale, dtype)
    x, weight = torch.randn(10, 64), torch.randn(7, 64)
    torch.testing.assert_close((x * divided.float()) @ (weight * exact).T, (x * norm) @ weight.T)
    assert exact.isfinite().all()


@pytest.mark.parametrize("kind", ["W8A8", "W8A8_DYNAMIC", "W8A8S"])
def test_smoothing_helps_where_channels_differ(kind):
    """Guards against a search that picks nothing, or the worst, where a few channels are large."""
    x, weight = torch.randn(600, 64), torch.randn(32, 64) * 0.1
    norm = torch.ones(64)
    norm[::16] = 40
    settings = Settings(type=kind)
    (divided, scale), alpha = smooth(norm, [weight], observed(x * norm), settings)
    assert alpha is not None
    assert divided.float().amax() < norm.amax()
    assert scale[0] > scale[1]
    fixed = Settings(type=kind, alpha=0.5)
    assert smooth(norm, [weight], observed(x * norm), fixed)[1] == 0.5


def test_sparse_weights_fit_four_bits_but_for_outliers():
    """Guards against W8A8S weights that compress no better than W8A8's, as compensation moves the
    bulk out of 4 bits."""
    weight = torch.randn(50, 400)
    weight[:, 0] *= 30
    scale = scale_of_bulk(weight, fraction=0.01, sigma=3.0)
    x = torch.randn(1000, 400) @ torch.randn(400, 400)
    for rounded in (round_sparse(weight, scale), round_compensated(weight, scale, x.T @ x)):
        assert torch.equal(rounded, rounded.round())
        assert rounded.abs().max() <= 127
        outside = (rounded < -8) | (rounded > 7)
        assert 0.002 < outside.float().mean() <= 0.01
        assert not outside[(weight / scale).abs() < 7.4].any()  # nor where compensation moves it
        assert ((rounded * scale - weight)[:, 0].abs() / scale[:, 0]).median() < 2


def test_heavy_tails_have_more_outliers():
    """Guards against a rule by sigma that has no effect."""
    weight = torch.from_numpy(np.random.default_rng(0).standard_t(2, (20, 2000))).float()
    shares = []
    for sigma in (100.0, 1.0):
        scale = scale_of_bulk(weight, 0.01, sigma)
        rounded = round_sparse(weight, scale)
        shares.append(((rounded < -8) | (rounded > 7)).float().mean())
    assert shares[0] <= 0.01 < shares[1]


def test_compensation_lowers_the_error():
    """Guards against errors that are made up for along the wrong directions."""
    x = torch.randn(2000, 16) @ torch.randn(16, 128) + 0.1 * torch.randn(2000, 128)
    weight = torch.randn(40, 128)
    scale = scale_of_bulk(weight, 0.01, 3.0)
    want = x @ weight.T
    plain, better = (
        ((x @ (rounded * scale).T) - want).norm() / want.norm()
        for rounded in (round_sparse(weight, scale), round_compensated(weight, scale, x.T @ x))
    )
    assert better < plain / 3


def test_compensation_of_channels_that_are_never_used():
    """Guards against a matrix without an inverse, as a few tokens give."""
    x = torch.randn(5, 70)
    x[:, ::2] = 0
    weight = torch.randn(6, 70)
    scale = scale_of_bulk(weight, 0.01, 3.0)
    assert round_compensated(weight, scale, x.T @ x).isfinite().all()
    assert torch.equal(
        round_compensated(weight, scale, torch.zeros(70, 70)), round_sparse(weight, scale)
    )


def test_builtin_set_is_the_same_everywhere():
    """Guards against a calibration set that differs between two runs, or is all of one kind."""
    one, other = (list(builtin.conversations(seed=3)) for _ in range(2))
    for (pictures, *words), (again, *same) in zip(one, other, strict=True):
        assert words == same
        assert all(map(np.array_equal, map(np.asarray, pictures), map(np.asarray, again)))
    assert {(min(len(pictures), 3), film) for pictures, film, *_ in one} == {
        (0, False), (1, False), (2, False), (3, True),
    }  # fmt: skip
    firsts = [np.asarray(pictures[0]).mean() for pictures, *_ in one if pictures]
    assert all(a != b for a, b in itertools.pairwise(firsts))
