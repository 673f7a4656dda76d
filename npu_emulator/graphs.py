# SPDX-License-Identifier: Apache-2.0
"""torch.npu's graph interface over the recorder in graphs.h.

On a device a replay is asynchronous, and the attention tasks in it wait for events until the host
has updated their arguments, which may come before the launch or after it. Here a replay is held
back until every task group of its graph is updated, and then runs at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary, finalize

import npu_emulator._boxed as _boxed

counts = {"captures": 0, "replays": 0, "updates": 0}


class NPUGraph:
    """As torch.npu.NPUGraph; a capture records the calls of its thread.

    groups: the task groups of its capture.
    awaited: those not updated since the last replay ran.
    """

    identities = itertools.count(1)
    capturing: NPUGraph | None = None
    launched: NPUGraph | None = None
    """The graph whose replay waits for updates."""

    def __init__(self) -> None:
        self.identity = next(NPUGraph.identities)
        self.groups: list[int] = []
        self.awaited: set[int] = set()
        finalize(self, _boxed.forget_graph, self.identity, self.groups).atexit = False

    def capture_begin(self, *arguments: Any, **options: Any) -> None:
        _boxed.capture_begin(self.identity)
        NPUGraph.capturing = self

    def capture_end(self) -> None:
        NPUGraph.capturing = None
        counts["captures"] += 1
        self.awaited = set(self.groups)
        if _boxed.capture_end() == 0:
            raise RuntimeError("npu_emulator: an ACL graph was captured with no operator in it.")

    def replay(self) -> None:
        if NPUGraph.launched is not None:
            raise RuntimeError(
                "npu_emulator: a graph is replayed while the replay before it still waits for "
                "task updates; on a device it would never finish."
            )
        counts["replays"] += 1
        NPUGraph.launched = self
        _boxed.hold(True)
        self.run_if_updated()

    def updated(self, group: int) -> None:
        """Count an update, and run the replay that waited for it alone."""
        counts["updates"] += 1
        self.awaited.discard(group)
        if NPUGraph.launched is self:
            self.run_if_updated()

    def run_if_updated(self) -> None:
        if not self.awaited:
            self.awaited = set(self.groups)
            NPUGraph.launched = None
            _boxed.hold(False)
            _boxed.replay(self.identity)

    def reset(self) -> None:
        _boxed.forget_graph(self.identity, self.groups)

    def pool(self) -> tuple[int, int]:
        return (0, 0)


@contextmanager
def graph(npu_graph: NPUGraph, *arguments: Any, **options: Any) -> Iterator[None]:
    """Stand-in for torch.npu.graph."""
    npu_graph.capture_begin()
    try:
        yield
    except BaseException:
        NPUGraph.capturing = None
        _boxed.capture_end()
        npu_graph.reset()
        raise
    npu_graph.capture_end()


_owners: WeakValueDictionary[int, NPUGraph] = WeakValueDictionary()
"""The graph of each task group."""
_updating: int | None = None


def group_begin(stream: Any) -> None:
    _boxed.group_begin()


def group_end(stream: Any) -> int:
    group = _boxed.group_end()
    assert NPUGraph.capturing is not None
    NPUGraph.capturing.groups.append(group)
    _owners[group] = NPUGraph.capturing
    return group


def update_begin(stream: Any, group: int) -> None:
    global _updating
    _boxed.update_begin(group)
    _updating = group


def update_end(stream: Any) -> None:
    global _updating
    group, _updating = _updating, None
    assert group is not None, "an update ends that has not begun"
    _boxed.update_end()
    _owners[group].updated(group)


def install() -> None:
    """Put these in the place of torch_npu's."""
    import torch
    import torch_npu

    for module in (torch.npu, torch_npu.npu):
        module.NPUGraph, module.graph = NPUGraph, graph
        module.graph_task_group_begin, module.graph_task_group_end = group_begin, group_end
        module.graph_task_update_begin, module.graph_task_update_end = update_begin, update_end
        module.is_current_stream_capturing = _boxed.is_capturing
