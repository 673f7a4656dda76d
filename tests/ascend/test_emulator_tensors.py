# SPDX-License-Identifier: Apache-2.0
"""Tensors of the emulated NPU: values, views and places are those that torch gives on a CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

pytestmark = [pytest.mark.ascend, pytest.mark.usefixtures("emulated")]
NPU = "npu"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spread_over_slices(x: Tensor, y: Tensor, i: Tensor) -> Tensor:
    x[1:3, ::2] = y[1:3, ::2]
    x[0].zero_()
    x.t()[1].copy_(y[:, 0])
    x[:, -1] = 7
    return x


def write_through_views(x: Tensor, y: Tensor, i: Tensor) -> Tensor:
    x.view(2, 12)[1].view(2, 6)[:, 1:3].add_(y[:2, :2])
    for part in x.split(3, dim=1):
        part[0] *= 2
    x.unfold(1, 2, 2)[0, 0].fill_(5)
    return x


def put(x: Tensor, y: Tensor, i: Tensor) -> Tensor:
    x.index_put_((i,), y[:3], accumulate=True)
    x[i[:2], 2] = 0
    x[:, None, i] = y[:, None, i]
    return x


OPERATORS: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "arithmetic": lambda x, y, i: x * y + 2 - x / (y.abs() + 1),
    "in place": lambda x, y, i: x.add_(y).mul_(2).clamp_(-1, 1),
    "out": lambda x, y, i: torch.add(x, y, out=torch.empty_like(x)),
    "out of no size": lambda x, y, i: torch.mm(x, y.t(), out=x.new_empty(0)),
    "out as a view": lambda x, y, i: (torch.add(x[0], y[0], out=x[2]), x),
    "two outs": lambda x, y, i: torch.max(x, 1, out=(x.new_empty(0), i.new_empty(0))),
    "views of views": lambda x, y, i: x.view(2, 12)[1].reshape(3, 4).t()[1:],
    "slices": spread_over_slices,
    "views written": write_through_views,
    "not contiguous": lambda x, y, i: (x.t() @ y, x[:, ::2].sum(1), x.t().contiguous()),
    "expanded": lambda x, y, i: (x[0].expand(4, 6) + y, x[:1].expand(4, -1), x[:, :1] * y),
    "empty": lambda x, y, i: (torch.cat([x[:0], y]), x[:0].sum(0), x[:0] + y[:0], x[:, 6:].t()),
    "0-dim": lambda x, y, i: (x.sum() * y, x.sum().add_(1), x * torch.tensor(3.0), 2 ** x.sum()),
    "lists": lambda x, y, i: (torch.cat([x, y], 1), torch.stack(x.unbind(1)), x.chunk(3, 1)),
    "index": lambda x, y, i: (x[i], x[None, i], x[:, None, i], x[i, 1:], x[i[:2], i[1:]]),
    "index by a mask": lambda x, y, i: (x[x > 0], x[x[:, 0] > 0], x.masked_fill(y > 0, 9)),
    "index on the host": lambda x, y, i: x[i.cpu()],
    "index put": put,
    "gather": lambda x, y, i: (x.gather(1, i[None].expand(4, 3)), x.index_select(0, i)),
    "scatter": lambda x, y, i: x.scatter_(1, i[None].expand(4, 3), y[:, :3]),
    "dtypes": lambda x, y, i: (x.half(), x.half().float(), x.int(), (x > 0).sum(), i.float()),
    "order": lambda x, y, i: (x.sort(-1), x.topk(2), x.argmax(), x.cumsum(1), x.flip(0)),
    "where": lambda x, y, i: (torch.where(x > 0, x, y), torch.nonzero(x > 0)),
    "reductions": lambda x, y, i: (x.mean(), x.amax(0), x.max(1), (x > 0).all(), x.logsumexp(1)),
    "networks": lambda x, y, i: (
        functional.linear(x, y, x[0, :4]),
        functional.layer_norm(x, (6,), y[0], y[1]),
        functional.softmax(x, -1),
        functional.gelu(x),
        functional.silu(x),
        functional.embedding(i, y),
        functional.conv2d(x.view(1, 2, 3, 4), y.view(4, 2, 3, 1)),
        torch.bmm(x.view(2, 2, 6), y.view(2, 6, 2)),
        torch.baddbmm(x.view(2, 2, 6), x.view(2, 2, 6)[..., :2], y.view(2, 2, 6)),
    ),
    "factories": lambda x, y, i: (
        torch.arange(5, device=x.device),
        torch.full((2,), 3.5, device=x.device),
        torch.ones_like(x),
        x.new_zeros(2, 2),
        torch.tensor([1, 2], device=x.device),
        torch.tensor(7.0, device=x.device),
    ),
}


def flat(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for part in value for t in flat(part)]


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("inference", [True, False])
def test_operators_give_the_values_of_a_cpu(name: str, inference: bool) -> None:
    operate = OPERATORS[name]
    arguments = random(4, 6), random(4, 6, seed=1), torch.tensor([3, 0, 2])
    with torch.inference_mode(inference):
        on_npu = [x.to(NPU) for x in arguments]
        got, want = flat(operate(*on_npu)), flat(operate(*arguments))
    for result, expected in zip(got, want, strict=True):
        assert result.device.type == NPU
        assert result.stride() == expected.stride()
    torch.testing.assert_close([x.cpu() for x in got], want, rtol=1e-6, atol=1e-6)
    for changed, expected in zip(on_npu, arguments, strict=True):  # what was written in place
        torch.testing.assert_close(changed.cpu(), expected, rtol=1e-6, atol=1e-6)


def test_views_share_memory_and_results_do_not() -> None:
    x = torch.zeros(4, 6, device=NPU)
    views = (x[1:], x.t(), x.view(24), x.split(2)[1], x.expand(2, 4, 6), x.unfold(0, 2, 1), x[2])
    for view in views:
        assert view.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert x.add_(1) is x
    assert (x + 0).untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    out = x.new_empty(0)
    assert torch.add(x, x, out=out) is out and out.shape == (4, 6)


def test_memory_that_overlaps_is_refused_as_on_a_cpu() -> None:
    x = torch.zeros(6, device=NPU)
    with pytest.raises(RuntimeError, match="refer to a single memory location"):
        x[1:].copy_(x[:-1])
    with pytest.raises(RuntimeError, match="refers? to a single memory location"):
        x[:1].expand(6).add_(1)


DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
DTYPES += [torch.float16, torch.bfloat16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_survive_the_way_to_the_device_and_back(dtype: torch.dtype) -> None:
    host = (random(5, 7) * 3).to(dtype)
    assert torch.equal(host.to(NPU).cpu(), host)
    assert torch.equal(host.t()[1:].to(NPU).cpu(), host.t()[1:])
    device = host.to(NPU)
    back = torch.zeros_like(host)
    back[::2].copy_(device[::2])
    assert torch.equal(back[::2], host[::2]) and not back[1::2].any()
    pinned = torch.empty_like(host).pin_memory()
    assert pinned.is_pinned() and not host.is_pinned()
    pinned.copy_(device, non_blocking=True)
    assert torch.equal(device.new_empty(5, 7).copy_(pinned, non_blocking=True).cpu(), host)


DRAWS: dict[str, Callable[[torch.Generator], Tensor]] = {
    "normal": lambda g: torch.empty(8, device=NPU).normal_(generator=g),
    "uniform": lambda g: torch.rand(8, device=NPU, generator=g),
    "integers": lambda g: torch.randint(0, 100, (8,), device=NPU, generator=g),
    "exponential": lambda g: torch.empty(8, device=NPU).exponential_(generator=g),
    "multinomial": lambda g: torch.multinomial(
        torch.ones(50, device=NPU), 8, replacement=True, generator=g
    ),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_generator_repeats_its_numbers_by_seed_and_by_state(name: str) -> None:
    draw = DRAWS[name]
    generator = torch.Generator(device=NPU).manual_seed(3)
    first, state, second = draw(generator), generator.get_state(), draw(generator)
    assert first.device.type == NPU and not torch.equal(first, second)
    assert torch.equal(draw(generator.manual_seed(3)), first)
    generator.set_state(state)
    assert torch.equal(draw(generator), second)
    assert not torch.equal(draw(generator.manual_seed(4)), first)


def test_the_default_generator_of_the_device_is_not_that_of_the_host() -> None:
    torch.npu.manual_seed(5)
    first = torch.rand(4, device=NPU)
    torch.npu.manual_seed(5)
    host = torch.default_generator.get_state()
    assert torch.equal(torch.rand(4, device=NPU), first)
    assert torch.equal(torch.default_generator.get_state(), host)
    torch.manual_seed(6)
    mixed = torch.rand(4, device=NPU)
    torch.manual_seed(6)
    assert torch.equal(torch.rand(4, device=NPU), mixed)


def test_results_stay_on_the_device_of_their_arguments() -> None:
    x = torch.ones(3, device="npu:1")
    for result in (x, x + 1, x.sum(), x.half(), torch.cat([x, x]), x.new_zeros(2), x[None]):
        assert result.device == torch.device("npu:1")
    assert x.to("npu:0").device == torch.device("npu:0")
    assert torch.npu.current_device() == 0


def test_calls_of_several_threads_are_all_counted_and_right() -> None:
    from npu_emulator import emulator

    wrong: list[int] = []

    def work(thread: int) -> None:
        for size in range(1, 51):
            x = torch.full((size,), float(thread), device=NPU)
            if not torch.equal((x * 2 + size).cpu(), torch.full((size,), 2.0 * thread + size)):
                wrong.append(thread)

    before = emulator.calls()["aten::mul.Tensor"]
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert emulator.calls()["aten::mul.Tensor"] - before == 200
