# SPDX-License-Identifier: Apache-2.0
"""The part of the host's memory that this process may have. Imports no torch or vLLM."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

AMOUNTS = re.compile(r"(\w+(?:\(file\))?):\s+(\d+) kB")


class Group(NamedTuple):
    """Files about memory in the folder of a control group, by the version of cgroups."""

    root: str
    limit: str
    used: str
    reclaimable: str
    """The key in memory.stat for the page cache that the kernel takes back first."""


VERSIONS = {
    2: Group("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    1: Group(
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
}


@dataclass(frozen=True)
class Memory:
    """Amounts of memory, in bytes."""

    total: int
    available: int

    def within(self, other: Memory) -> Memory:
        """Return the memory that both allow."""
        return Memory(min(self.total, other.total), min(self.available, other.available))


def read(root: Path = Path("/")) -> Memory | None:
    """Return the memory that this process may have; None where /proc/meminfo does not tell.

    It is the host's, or less: in a container with a limit (of its control group or one above it),
    and on a host of several NUMA nodes, as vLLM's CPU backend stays on one.

    Args:
        root: Where the system's files are.
    """
    found = _amounts(root / "proc/meminfo")
    if not {"MemTotal", "MemAvailable"} <= found.keys():
        return None
    memory = Memory(found["MemTotal"], found["MemAvailable"])
    for limit in (*_limits(root), *_nodes(root)):
        memory = memory.within(limit)
    return memory


def _amounts(path: Path) -> dict[str, int]:
    try:
        return {key: int(kib) << 10 for key, kib in AMOUNTS.findall(path.read_text())}
    except OSError:
        return {}


def _limits(root: Path) -> Iterator[Memory]:
    """Yield the limits of this process's control groups."""
    for version, folder in _groups(root):
        group = VERSIONS[version]
        limit = _number(folder / group.limit)
        if limit is None:
            continue
        used = _number(folder / group.used) or 0
        cache = _statistic(folder / "memory.stat", group.reclaimable)
        yield Memory(limit, max(0, limit - max(0, used - cache)))


def _groups(root: Path) -> Iterator[tuple[int, Path]]:
    """Yield (version, folder) of this process's groups, and of all above them."""
    inside = {version: "/" for version in VERSIONS}
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:  # "0::/path" of version 2, "7:memory:/path" of version 1
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            inside[2] = path
        elif "memory" in controllers.split(","):
            inside[1] = path
    for version, path in inside.items():
        top = root / VERSIONS[version].root
        here = top / path.strip("/")
        while here.is_relative_to(top):  # a path may name folders that a container does not see
            yield version, here
            here = here.parent


def _nodes(root: Path) -> Iterator[Memory]:
    """Yield the memory of the NUMA node of the first core that this process may use."""
    core = min(os.sched_getaffinity(0))
    for link in (root / f"sys/devices/system/cpu/cpu{core}").glob("node[0-9]*"):
        found = _amounts(root / "sys/devices/system/node" / link.name / "meminfo")
        if "MemTotal" in found:  # summed as vLLM does
            parts = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")
            yield Memory(found["MemTotal"], sum(found.get(part, 0) for part in parts))


def _statistic(path: Path, key: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key} ")), 0)


def _number(path: Path) -> int | None:
    """Return the number in a file; None where it is no number ("max") or there is no file."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
