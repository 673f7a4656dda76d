# SPDX-License-Identifier: Apache-2.0
"""torch.npu's graph interface over the recorder in boxed.cpp.

On a device a replay is asynchronous, and the attention tasks in it wait for events until the host
has updated their arguments, which may come after the launch. Here a replay is held back until every
task group of its graph is updated, and then runs at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import npu_emulator._boxed as _boxed

_identities = itertools.count(1)
counts = {"captures": 0, "replays": 0, "updates": 0}


class NPUGraph:
    """As torch.npu.NPUGraph; a capture records the calls of this process."""

    capturing: NPUGraph | None = None
    launched: NPUGraph | None = None
    """The graph whose replay waits for updates."""

    def __init__(self) -> None:
        self.identity = next(_identities)
        self.groups: set[int] = set()
        self.awaited: set[int] = set()

    def capture_begin(self, *arguments: Any, **options: Any) -> None:
        NPUGraph.capturing = self
        _boxed.capture_begin(self.identity)

    def capture_end(self) -> None:
        NPUGraph.capturing = None
        counts["captures"] += 1
        if _boxed.capture_end() == 0:
            raise RuntimeError("npu_emulator: an ACL graph was captured with no operator in it.")

    def replay(self) -> None:
        if NPUGraph.launched is not None:
            raise RuntimeError(
                "npu_emulator: a graph is replayed while the replay before it still waits for "
                "task updates; on a device it would never finish."
            )
        counts["replays"] += 1
        self.awaited = set(self.groups)
        if self.awaited:
            NPUGraph.launched = self
        else:
            _boxed.replay(self.identity)

    def updated(self, group: int) -> None:
        """Run the waiting replay if `group` was the last one it waited for."""
        self.awaited.discard(group)
        if not self.awaited:
            NPUGraph.launched = None
            _boxed.replay(self.identity)

    def reset(self) -> None:
        _boxed.forget_graph(self.identity)

    def pool(self) -> tuple[int, int]:
        return (0, 0)


@contextmanager
def graph(npu_graph: NPUGraph, *arguments: Any, **options: Any) -> Iterator[None]:
    """As torch.npu.graph."""
    npu_graph.capture_begin()
    try:
        yield
    finally:
        npu_graph.capture_end()


def group_begin(stream: Any) -> None:
    _boxed.group_begin()


def group_end(stream: Any) -> int:
    group = _boxed.group_end()
    assert NPUGraph.capturing is not None, "a task group ends outside a capture"
    NPUGraph.capturing.groups.add(group)
    return group


_updating: int | None = None


def update_begin(stream: Any, group: int) -> None:
    global _updating
    _updating = group
    counts["updates"] += 1
    _boxed.update_begin(group)


def update_end(stream: Any) -> None:
    _boxed.update_end()
    waiting = NPUGraph.launched
    if waiting is not None and _updating in waiting.awaited:
        waiting.updated(_updating)


def install() -> None:
    """Put these in the place of torch_npu's."""
    import torch
    import torch_npu

    for module in (torch.npu, torch_npu.npu):
        module.NPUGraph, module.graph = NPUGraph, graph
        module.graph_task_group_begin, module.graph_task_group_end = group_begin, group_end
        module.graph_task_update_begin, module.graph_task_update_end = update_begin, update_end
