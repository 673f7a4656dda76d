# SPDX-License-Identifier: Apache-2.0
"""A folder of small results, as the runner of benchmarks writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.report.results import FLOOR, Machine, Missing, Result, compare

MACHINE = Machine(
    cpu="a CPU <of ours>", cores=2, memory_gib=24.0, device="CPU", date="2026-11-28T04:00:00+00:00"
)
LOAD = "requests at once"


def result(name: str, **fields: Any) -> Result:
    """One that has nothing but what `fields` say."""
    given = {"title": f"About {name}", "status": "measured", "command": f"python -m {name}"}
    return Result(name=name, machine=MACHINE, versions={"vllm": "0.23.0"}, **{**given, **fields})


RESULTS = (
    result(
        "network",
        rows=(
            compare("first token", "a|b", "ms", [1.0, 2.0, 4.0], "in-tree", [2.0, 6.0, 4.0]),
            compare("first token", "no peer", "ms", [3.0]),
            compare("first token", "peer alone", "ms", [], "in-tree", [1234.5]),
            compare("token", "", "ms", [4.0], FLOOR, [3.0]),
        ),
        missing=(Missing(what="the same on an NPU", why="this machine has none"),),
    ),
    result(
        "serving",
        rows=tuple(
            compare("first token", case, "ms", [at], "in-tree", [at + 1], load=(at, LOAD))
            for at in (1.0, 4.0)
            for case in ("p50", "p99")
        ),
        notes=("tiny & quick",),
    ),
    result(
        "accuracy",
        rows=tuple(
            compare("numbers", type, "%", [at], "float", [99.0], higher_is_better=True, type=type)
            for type, at in (("W8A8", 98.0), ("W8A8S", 90.0))
        ),
    ),
    result("broken", status="failed", why="exit code 1; its last lines:\nit <fell> over"),
)


def write_all(folder: Path) -> None:
    """A file for each of RESULTS."""
    for one in RESULTS:
        one.write(folder / f"{one.name}.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All of RESULTS."""
    path = tmp_path / "results"
    path.mkdir()
    write_all(path)
    return path
