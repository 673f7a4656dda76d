# SPDX-License-Identifier: Apache-2.0
"""What every benchmark says of the machine, and how it writes what it found.

The format is `benchmarks.report.results`, which `python -m benchmarks.report` reads.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from benchmarks.report.results import Machine, Missing, Result, Row

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("vllm", "vllm-ascend", "torch", "torch-npu", "transformers", "vllm-glm41v-npu")
NO_NPU = Missing(what="the same on an NPU", why="this machine has none")
_BEGIN = time.perf_counter()


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> str:
    return f"{os.cpu_count()} x {cpu()}"


def device() -> str:
    """The NPU's name; CPU where there is none, and where it is emulated."""
    if find_spec("torch_npu") is None or find_spec("npu_emulator") is not None:
        return "CPU"
    import torch
    import torch_npu  # noqa: F401 -- gives torch its `npu`

    return torch.npu.get_device_name(0) if torch.npu.is_available() else "CPU"


def about_machine() -> Machine:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cpu=cpu(),
        cores=os.cpu_count() or 1,
        memory_gib=round(pages / (1 << 30), 1),
        device=device(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def versions() -> dict[str, str]:
    """Of what computes here, and this repository's commit."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return found
    return found | ({"commit": done.stdout.strip()} if done.returncode == 0 else {})


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, help="write the result to this file")


def write(
    path: Path | None,
    title: str,
    rows: Sequence[Row],
    missing: Sequence[Missing] = (),
    notes: Sequence[str] = (),
) -> None:
    """Write what the benchmark that runs here found; without a path, do nothing.

    Args:
        path: What --json gave.
        title: One line that says what was measured.
        missing: What was not measured but could have been; that there is no NPU is added.
        notes: What a reader of the figures has to know.
    """
    if path is None:
        return
    here = about_machine()
    name, arguments = Path(sys.argv[0]).stem, sys.argv[1:]
    if "--json" in arguments:
        place = arguments.index("--json")
        del arguments[place : place + 2]
    Result(
        name=name,
        title=title,
        status="measured",
        command=shlex.join(["python", "-m", f"benchmarks.{name}", *arguments]),
        machine=here,
        versions=versions(),
        seconds=round(time.perf_counter() - _BEGIN, 1),
        rows=tuple(rows),
        missing=(*missing, *([NO_NPU] if here.device == "CPU" else [])),
        notes=tuple(notes),
    ).write(path)
