# SPDX-License-Identifier: Apache-2.0
"""Attention in an ACL graph, whose lengths the host updates between replays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = [pytest.mark.ascend, pytest.mark.usefixtures("emulated")]
HEADS, KV_HEADS, SIZE, BLOCK = 4, 2, 128, 128


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    from npu_emulator import _boxed, graphs

    with torch.inference_mode():
        yield
    graphs.NPUGraph.launched = None  # whatever a failed test left waiting
    _boxed.hold(False)


def is_310p() -> bool:
    from npu_emulator.settings import current_chip

    return current_chip().device_type == "_310P"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).half()


class Attention:
    """One query on a paged cache, by a task that a graph's host updates."""

    def __init__(self) -> None:
        shape = (2, KV_HEADS * SIZE // 16, BLOCK, 16) if is_310p() else (2, BLOCK, KV_HEADS, SIZE)
        self.query = random(1, HEADS, SIZE).to("npu")
        self.key, self.value = (random(*shape, seed=seed).to("npu") for seed in (1, 2))
        self.table = torch.tensor([[1]], dtype=torch.int32, device="npu")
        self.out = torch.zeros(1, HEADS, SIZE, dtype=torch.float16, device="npu")

    def run(self, length: int) -> None:
        """Over the first `length` tokens; their number comes from the host."""
        import torch_npu

        torch_npu._npu_paged_attention(
            query=self.query,
            key_cache=self.key,
            value_cache=self.value,
            num_kv_heads=KV_HEADS,
            num_heads=HEADS,
            scale_value=0.1,
            block_table=self.table,
            context_lens=torch.tensor([length], dtype=torch.int32),
            out=self.out,
        )

    def at(self, length: int) -> Tensor:
        """What it computes over `length` tokens."""
        self.run(length)
        return self.out.cpu()

    def capture(self, count: int = 1) -> tuple[Any, list[Any], Tensor]:
        """A graph of `count` such tasks, their handles, and the sum of what they gave."""
        graph, stream = torch.npu.NPUGraph(), torch.npu.current_stream()
        handles, total = [], torch.zeros_like(self.out)
        with torch.npu.graph(graph):
            for _ in range(count):
                torch.npu.graph_task_group_begin(stream)
                self.run(1)
                handles.append(torch.npu.graph_task_group_end(stream))
                total.add_(self.out)
        return graph, handles, total

    def update(self, handle: Any, length: int) -> None:
        stream = torch.npu.current_stream()
        torch.npu.graph_task_update_begin(stream, handle)
        self.run(length)
        torch.npu.graph_task_update_end(stream)


def test_an_update_changes_the_lengths_of_the_replay_that_waits_for_it() -> None:
    attention = Attention()
    want = {length: attention.at(length) for length in (1, 5, 100)}
    assert not torch.equal(want[5], want[100])
    graph, (handle,), total = attention.capture()
    for length in (5, 100):
        total.zero_()
        graph.replay()
        attention.update(handle, length)
        torch.testing.assert_close(total.cpu(), want[length])


def test_an_update_may_come_before_its_replay() -> None:
    attention = Attention()
    want = attention.at(7)
    graph, (handle,), total = attention.capture()
    total.zero_()
    attention.update(handle, 7)
    assert not total.any()
    graph.replay()
    torch.testing.assert_close(total.cpu(), want)


def test_a_replay_runs_when_the_last_of_its_groups_is_updated() -> None:
    attention = Attention()
    want = attention.at(3) + attention.at(9)
    graph, handles, total = attention.capture(2)
    total.zero_()
    graph.replay()
    attention.update(handles[0], 3)
    with pytest.raises(RuntimeError, match="is called while the replay .* waits for task updates"):
        total.cpu()
    attention.update(handles[1], 9)
    torch.testing.assert_close(total.cpu(), want)


def test_a_replay_while_another_waits_raises() -> None:
    attention = Attention()
    graph, _, _ = attention.capture()
    graph.replay()
    with pytest.raises(RuntimeError, match="the replay before it still waits for task updates"):
        graph.replay()


def test_an_update_with_another_operator_or_without_one_raises() -> None:
    import torch_npu

    attention, stream = Attention(), torch.npu.current_stream()
    graph, (handle,), _ = attention.capture()
    torch.npu.graph_task_update_begin(stream, handle)
    with pytest.raises(RuntimeError, match="calls npu::npu_swiglu where the capture called anoth"):
        torch_npu.npu_swiglu(attention.query)
    with pytest.raises(RuntimeError, match="calls 0 of its 1 operators"):
        torch.npu.graph_task_update_end(stream)
    with pytest.raises(RuntimeError, match="there is no task group"):
        torch.npu.graph_task_update_begin(stream, 10**6)
    graph.reset()
    with pytest.raises(RuntimeError, match="there is no task group"):
        attention.update(handle, 1)


def test_a_group_outside_a_capture_raises() -> None:
    with pytest.raises(RuntimeError, match="a task group begins outside a capture"):
        torch.npu.graph_task_group_begin(torch.npu.current_stream())


def test_a_graph_that_is_dropped_frees_its_memory() -> None:
    import gc

    torch.npu.empty_cache()
    before = torch.npu.memory_allocated()
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        torch.zeros(1 << 20, device="npu").add_(1)
    assert torch.npu.memory_allocated() > before + (1 << 20)
    del graph
    gc.collect()
    assert torch.npu.memory_allocated() <= before + (1 << 20)
