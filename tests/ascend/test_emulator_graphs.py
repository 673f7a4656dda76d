# SPDX-License-Identifier: Apache-2.0
"""ACL graphs on the emulated NPU: what a replay computes, and what a capture does not allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = [pytest.mark.ascend, pytest.mark.usefixtures("emulated")]


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def capture(function: Callable[[], Any]) -> tuple[Any, Any]:
    """A graph of what `function` calls, and what it returned."""
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        result = function()
    return graph, result


def on_npu(*values: float) -> Tensor:
    return torch.tensor(values, device="npu")


def test_a_replay_computes_from_what_is_in_the_buffers_now() -> None:
    x, weight = torch.ones(2, 3, device="npu"), torch.eye(3, device="npu")
    graph, y = capture(lambda: torch.softmax((x @ weight)[:, 1:] * 2, -1).sum(0))
    for seed in (1, 2):
        fresh = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))
        x.copy_(fresh)
        graph.replay()
        torch.testing.assert_close(y.cpu(), torch.softmax(fresh[:, 1:] * 2, -1).sum(0))


def test_a_replay_writes_in_place_through_views_and_into_outs() -> None:
    x, out = torch.zeros(4, 3, device="npu"), torch.zeros(3, device="npu")

    def step() -> Tensor:
        x[1:3].add_(1)
        x.t()[0, ::2] = 7
        torch.add(x[1], x[2], out=out)
        return x.view(2, 6)[1]

    graph, view = capture(step)
    graph.replay()
    graph.replay()
    assert x.tolist() == [[7, 0, 0], [3, 3, 3], [7, 3, 3], [0, 0, 0]]
    assert out.tolist() == [4 + 6, 6, 6]
    assert view.tolist() == [7, 3, 3, 0, 0, 0]


def test_lists_and_pinned_host_memory_are_replayed() -> None:
    host, x = torch.zeros(4).pin_memory(), torch.zeros(4, device="npu")

    def step() -> Tensor:
        x.copy_(host, non_blocking=True)
        return torch.cat([part * 2 for part in x.chunk(2)])

    graph, y = capture(step)
    host.copy_(torch.arange(4.0))
    graph.replay()
    assert y.tolist() == [0, 2, 4, 6]


def test_results_stay_in_place_when_the_caller_drops_what_it_captured() -> None:
    x = torch.ones(1000, device="npu")
    graph, y = capture(lambda: ((x * 2) + 1) * 3)
    others = [torch.full((1000,), 5.0, device="npu") for _ in range(20)]
    x.fill_(2)
    graph.replay()
    assert y.eq(15).all() and all(other.eq(5).all() for other in others)


def test_a_capture_records_its_own_thread_alone() -> None:
    import threading

    x, other = on_npu(1), on_npu(1)

    @torch.inference_mode()
    def elsewhere() -> None:
        other.add_(1)
        other.item()

    def step() -> Tensor:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return x + 1

    graph, _ = capture(step)
    graph.replay()
    assert other.item() == 2


def pageable() -> Tensor:
    return torch.zeros(3)


WAITS: list[tuple[str, Callable[[Tensor], Any]]] = [
    ("_local_scalar_dense", lambda x: x.sum().item()),
    ("_local_scalar_dense", lambda x: bool(x[0] > 1)),
    ("nonzero", lambda x: x.nonzero()),
    ("where", lambda x: torch.where(x > 1)),
    ("masked_select", lambda x: x.masked_select(x > 1)),
    ("index.Tensor", lambda x: x[x > 1]),
    ("index_put_", lambda x: x.index_put_((x > 1,), x[:2] + 0)),
    ("index.Tensor", lambda x: x[torch.tensor([1])]),
    ("_unique2", lambda x: torch.unique(x)),
    ("repeat_interleave", lambda x: x.repeat_interleave((x > 1).long() + 1)),
    ("equal", lambda x: torch.equal(x, x)),
    ("copy_", lambda x: x.copy_(pageable())),
    ("copy_", lambda x: x.copy_(pageable(), non_blocking=True)),
    ("copy_", lambda x: x.copy_(pageable().pin_memory())),
    ("copy_", lambda x: pageable().copy_(x)),
    ("_to_copy", lambda x: x.cpu()),
    ("_to_copy", lambda x: x.tolist()),
    ("_to_copy", lambda x: torch.tensor([1, 2], device="npu")),
    ("_to_copy", lambda x: torch.tensor(1.0, device="npu")),
]


@pytest.mark.parametrize(("name", "wait"), WAITS, ids=[name for name, _ in WAITS])
def test_a_wait_of_the_host_is_refused_during_capture(
    name: str, wait: Callable[[Tensor], Any]
) -> None:
    from npu_emulator import emulator

    x, full_name = on_npu(1, 2, 3), "aten::" + name
    before = sum(n for key, n in emulator.waits().items() if key.startswith(full_name))
    with pytest.raises(RuntimeError, match=f"{full_name}.* makes the host wait .* is captured"):
        capture(lambda: (x + 1, wait(x)))
    after = sum(n for key, n in emulator.waits().items() if key.startswith(full_name))
    assert after == before + 1
    assert not torch.npu.is_current_stream_capturing()
    wait(x)  # and is none of a graph's business outside


@pytest.mark.parametrize(
    "wait",
    [
        lambda: torch.npu.synchronize(),
        lambda: torch.npu.current_stream().synchronize(),
        lambda: recorded().synchronize(),
    ],
    ids=["device", "stream", "event"],
)
def test_synchronisation_is_refused_during_capture(wait: Callable[[], None]) -> None:
    x = on_npu(1)
    with pytest.raises(RuntimeError, match="107030"), torch.npu.graph(torch.npu.NPUGraph()):
        x.add_(1)
        wait()
    wait()


def recorded() -> Any:
    event = torch.npu.Event()
    event.record()
    return event


ALLOWED: dict[str, Callable[[Tensor], Any]] = {
    "cast": lambda x: x.half(),
    "scalars": lambda x: x * 2 + torch.tensor(1.0),
    "indices on the device": lambda x: x[torch.zeros_like(x).long()],
    "masks of the same size": lambda x: (x.masked_fill(x > 1, 0), torch.where(x > 1, x, 0 * x)),
    "pinned": lambda x: torch.zeros(3).pin_memory().to("npu", non_blocking=True),
    "to pinned": lambda x: x.to("cpu", non_blocking=True),
    "a known size": lambda x: x.repeat_interleave(x.long(), output_size=6),
    "setting": lambda x: x[1:].fill_(4),
    "events": lambda x: (recorded().wait(), torch.npu.is_current_stream_capturing()),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_does_not_wait_is_captured(name: str) -> None:
    x = on_npu(1, 2, 3)
    capture(lambda: (x + 1, ALLOWED[name](x)))


def test_a_capture_of_nothing_and_one_within_another_raise() -> None:
    with pytest.raises(RuntimeError, match="captured with no operator"):
        capture(lambda: None)
    with pytest.raises(RuntimeError, match="is captured already"):
        capture(lambda: capture(lambda: on_npu(1) + 1))
    with pytest.raises(ValueError, match="mine"):
        capture(lambda: int("mine"))
    assert not torch.npu.is_current_stream_capturing()
