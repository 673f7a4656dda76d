# SPDX-License-Identifier: Apache-2.0
"""Memory of a server's processes over time, and whether it still grows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import linear_regression, median
from typing import NamedTuple

import psutil

SETTLING = 1 / 3
"""Share of the time in which caches and the allocator's free lists fill up."""

LEAST = 9
"""Measurements that a process has to have before anything is said of it."""

Memory = dict[str, list[tuple[float, float]]]
"""Seconds since the start and MiB, by the name of the process."""


class Growth(NamedTuple):
    """The rise of a process's memory after it has settled.

    rise: MiB, on a straight line through the measurements of the settled time.
    hourly: the same for an hour.
    level: MiB in the middle of that time.
    """

    rise: float
    hourly: float
    level: float


def growth(points: Sequence[tuple[float, float]], settling: float = SETTLING) -> Growth:
    """The rise of the memory in `points` after the first part of their time.

    Args:
        points: Seconds and MiB, in order.
        settling: The share of the time that is left out.

    Raises:
        ValueError: Fewer than three points are left.
    """
    first, last = points[0][0], points[-1][0]
    settled = [point for point in points if point[0] >= first + settling * (last - first)]
    if len(settled) < 3:
        raise ValueError(
            f"{len(settled)} measurements after settling; expected 3 or more. Measure for longer."
        )
    seconds, sizes = zip(*settled, strict=True)
    slope = linear_regression(seconds, sizes).slope
    return Growth(slope * (seconds[-1] - seconds[0]), slope * 3600, median(sizes))


def settled(memory: Memory) -> dict[str, Growth]:
    """The growth of each process but for those that lived for a moment alone."""
    return {name: growth(points) for name, points in memory.items() if len(points) >= LEAST}


def resident(process: psutil.Process) -> float:
    """MiB that the process has in memory, but for files that are mapped, such as libraries.

    Shares of those would change with whatever else the machine runs.

    Raises:
        psutil.NoSuchProcess: It has ended.
    """
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(process.pid) from None
    fields = dict(line.split(":", 1) for line in lines)
    if "RssAnon" not in fields:  # a process that has ended, and that nobody has asked about
        raise psutil.NoSuchProcess(process.pid)
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) / 1024


def label(process: psutil.Process, server: psutil.Process) -> str:
    """A name of the process that is the same in every run."""
    if process.pid == server.pid:
        return "server"
    title = process.cmdline()[:1]
    if title and title[0].startswith("VLLM::"):
        return title[0].removeprefix("VLLM::")
    return "resource tracker" if "resource_tracker" in " ".join(process.cmdline()) else "helper"


async def watch(server: psutil.Process, every: float, memory: Memory) -> None:
    """Add the memory of each of the server's processes, again and again, until cancelled."""
    begin = time.monotonic()
    while True:
        now = time.monotonic() - begin
        for process in [server, *server.children(recursive=True)]:
            try:
                memory[label(process, server)].append((now, resident(process)))
            except psutil.NoSuchProcess:
                continue
        await asyncio.sleep(every)
