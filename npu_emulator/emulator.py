# SPDX-License-Identifier: Apache-2.0
"""`install()` lets this process's NPU tensors compute on the CPU, by the rules of a chip."""

from __future__ import annotations

import atexit
import functools
import json
import multiprocessing.util
import os
import time
from pathlib import Path
from typing import Any

import torch

from . import _boxed, collectives, graphs, kernels, slot_mapping
from .checks import Checker
from .chips import CHIPS
from .settings import current_chip, report_folder

NAMESPACES = ("aten", "npu", "atb", "_C_ascend", "c10d")
# torch_npu's own, which touch only metadata and the allocator.
NATIVE = {
    *("aten::empty.memory_format", "aten::empty_strided", "aten::empty_like"),
    *("aten::new_empty_strided", "aten::empty_with_format", "aten::empty_with_format.names"),
    *("aten::unsafe_empty_with_format", "aten::empty_with_swapped_memory"),
    *("aten::as_strided", "aten::as_strided_", "aten::view", "aten::_reshape_alias", "aten::alias"),
    *("aten::view_as_real", "aten::view_as_complex", "aten::resize_", "aten::resize_as_"),
    *("aten::set_", "aten::set_.source_Storage", "aten::set_.source_Storage_storage_offset"),
    *("aten::set_.source_Tensor", "aten::is_set_to", "aten::record_stream"),
    *("aten::is_pinned", "aten::_pin_memory", "aten::get_storage_size", "aten::get_npu_format"),
    *("npu::get_storage_size", "npu::get_npu_format", "npu::set_op_timeout_ms"),
}

_overridden: set[str] = set()


def override() -> int:
    """Put the boxed kernel in the place of each NPU kernel there is; returns how many were new."""
    kernels.register()
    registered = set(torch._C._dispatch_get_registrations_for_dispatch_key("PrivateUse1"))
    new = 0
    for name in sorted(registered - NATIVE - _overridden):
        namespace, base = name.split("::")
        if namespace in NAMESPACES and kernels.registry.find_schema(name) is not None:
            _boxed.override_operator(namespace, base)
            _overridden.add(name)
            new += 1
    return new


class Report:
    """What this process called, written to NPU_EMULATOR_REPORT now and then and at its end."""

    def __init__(self, checker: Checker, folder: Path) -> None:
        self.checker = checker
        self.path = folder / f"{os.getpid()}.json"
        folder.mkdir(parents=True, exist_ok=True)
        # Worker processes end without atexit.
        multiprocessing.util.Finalize(None, self.write, exitpriority=0)
        atexit.register(self.write)

    def write(self) -> None:
        record = {
            "chip": self.checker.chip,
            "calls": _boxed.calls(),
            "graphs": graphs.counts,
            "refused": self.checker.refused,
            "examples": {name: calls[:3] for name, calls in self.checker.examples.items()},
        }
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=1))
        partial.rename(self.path)


class ReportingChecker(Checker):
    """Writes the report at every refusal and, while calls are new, every few seconds."""

    report: Report | None = None
    written = 0.0

    def call(self, name: str, values: tuple[Any, ...]) -> None:
        try:
            super().call(name, values)
        except Exception:
            if self.report is not None:
                self.report.write()
            raise
        if self.report is not None and time.monotonic() > self.written + 2:
            self.written = time.monotonic()
            self.report.write()


@functools.cache
def install() -> Checker:
    """Emulate the chip that NPU_EMULATOR_CHIP names in this process; safe to call again."""
    import vllm_ascend.vllm_ascend_C  # noqa: F401  its operators are overridden too

    chip = current_chip()
    checker = ReportingChecker(chip.title, CHIPS[chip.device_type])
    override()
    _boxed.set_checker(checker)
    graphs.install()
    collectives.install()
    slot_mapping.install()
    if folder := report_folder():
        checker.report = Report(checker, folder)
    return checker


def calls() -> dict[str, int]:
    """How often each operator was called in this process so far, replays included."""
    return dict(_boxed.calls())
