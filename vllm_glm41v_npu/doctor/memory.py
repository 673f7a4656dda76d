# SPDX-License-Identifier: Apache-2.0
"""The host's memory, as much of it as this process may have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# The container's limit, in cgroup 2 and cgroup 1.
LIMITS = ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Memory:
    """In bytes."""

    total: int
    available: int


def read(root: Path) -> Memory | None:
    """What /proc/meminfo says, or less in a container with a limit; None where it says nothing."""
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        return None
    amounts = {key: int(kib) << 10 for key, kib in re.findall(r"(\w+):\s+(\d+) kB", text)}
    if not {"MemTotal", "MemAvailable"} <= amounts.keys():
        return None
    limits = [limit for name in LIMITS if (limit := _number(root / name)) is not None]
    return Memory(*(min([amounts[key], *limits]) for key in ("MemTotal", "MemAvailable")))


def _number(path: Path) -> int | None:
    """What the file holds, unless it is no number ("max") or there is none."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
