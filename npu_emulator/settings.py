# SPDX-License-Identifier: Apache-2.0
"""Which chip is emulated, and where the built libraries are. Imports nothing heavy.

NPU_EMULATOR_CHIP: "A2" (the default) or "310P".
NPU_EMULATOR_MEMORY_GIB: memory of one device, if not MEMORY_GIB.
NPU_EMULATOR_REPORT: a folder; each process writes there what it called, as JSON.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

BUILT = Path(sys.prefix) / "npu_emulator"
"""In the environment that the libraries were built against."""


@dataclass(frozen=True)
class Chip:
    """What tells one chip from another before any operator runs.

    title: what messages call it.
    device_type: its name in vllm-ascend's build information.
    soc: what the runtime calls it, from which torch_npu derives its version number.
    """

    title: str
    device_type: str
    soc: str


CHIPS = {
    "A2": Chip("Atlas A2", "A2", "Ascend910B3"),
    "310P": Chip("Atlas 310P", "_310P", "Ascend310P3"),
}

MEMORY_GIB = 4
"""Memory of one device; a real one has more, and vLLM's cache would fill the host's memory."""


def current_chip() -> Chip:
    """The chip that NPU_EMULATOR_CHIP names; raises SystemExit if it is none of CHIPS."""
    name = os.environ.get("NPU_EMULATOR_CHIP", "A2")
    if name not in CHIPS:
        raise SystemExit(f"NPU_EMULATOR_CHIP is {name!r}; it can be {' or '.join(CHIPS)}.")
    return CHIPS[name]


def report_folder() -> Path | None:
    """Where NPU_EMULATOR_REPORT wants the record of this process, if anywhere."""
    folder = os.environ.get("NPU_EMULATOR_REPORT")
    return Path(folder) if folder else None
