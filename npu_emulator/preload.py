# SPDX-License-Identifier: Apache-2.0
"""Make this interpreter see an NPU: run at its start by a .pth file of the environment.

Loads the stub libraries, so that whoever links CANN finds it by name, and settles what a chip and
its software settle before any code asks: the SoC, the memory, which chip vllm-ascend was built for.
"""

from __future__ import annotations

import ctypes
import os
import sys
import types

from npu_emulator.settings import BUILT, MEMORY_GIB, Chip, current_chip

SETTINGS = {
    "TASK_QUEUE_ENABLE": "0",  # calls run where they are made, not on torch_npu's own thread
}


def describe_chip(chip: Chip) -> None:
    """Tell the stub runtime, and vllm-ascend's build information, which chip this is."""
    os.environ["NPU_EMULATOR_SOC"] = chip.soc
    os.environ.setdefault("NPU_EMULATOR_MEMORY_GIB", str(MEMORY_GIB))
    # A wheel of vllm-ascend is built for one chip; this one serves both.
    built_for = types.ModuleType("vllm_ascend._build_info")
    built_for.__dict__["__device_type__"] = chip.device_type
    sys.modules[built_for.__name__] = built_for


def provide_pyacl() -> None:
    """An `acl` package for vllm-ascend's import of it; CANN ships the real one."""

    def memcpy(*arguments: object) -> None:
        raise RuntimeError("npu_emulator has no acl.rt.memcpy: sleep mode is not emulated.")

    acl, runtime = types.ModuleType("acl"), types.ModuleType("acl.rt")
    runtime.__dict__["memcpy"] = memcpy
    acl.__dict__["rt"] = runtime
    sys.modules.update({"acl": acl, "acl.rt": runtime})


def preload() -> None:
    libraries = BUILT / "libraries.txt"
    if not libraries.exists():
        return  # not built yet: pip is at work
    for name in libraries.read_text().split():
        ctypes.CDLL(str(BUILT / name))
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    describe_chip(current_chip())
    provide_pyacl()


preload()
