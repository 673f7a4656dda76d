# SPDX-License-Identifier: Apache-2.0
"""`install()` lets this process's NPU tensors compute on the CPU, by the rules of a chip."""

from __future__ import annotations

import functools

import torch

from npu_emulator import _boxed, collectives, graphs, kernels
from npu_emulator.checks import Checker
from npu_emulator.chips import CHIPS
from npu_emulator.kernels.registry import find_schema
from npu_emulator.report import Report
from npu_emulator.settings import current_chip

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


def override() -> None:
    """Put the boxed kernel in the place of each NPU kernel there is."""
    kernels.register()
    for name in torch._C._dispatch_get_registrations_for_dispatch_key("PrivateUse1"):
        namespace, base = name.split("::")
        # torch_npu registers its own operators under aten too, where no schema names them.
        if namespace in NAMESPACES and name not in NATIVE and find_schema(name) is not None:
            _boxed.override_operator(namespace, base)


@functools.cache
def install() -> Checker:
    """Emulate the chip that NPU_EMULATOR_CHIP names in this process; safe to call again."""
    import vllm_ascend.vllm_ascend_C  # noqa: F401  its operators are overridden too

    chip = current_chip()
    checker = Checker(chip.title, CHIPS[chip.device_type])
    override()
    _boxed.set_checker(checker)
    graphs.install()
    collectives.install()
    Report(checker)
    return checker


def calls() -> dict[str, int]:
    """How often each operator was called in this process so far, replays included."""
    return _boxed.calls()


def waits() -> dict[str, int]:
    """How often each operator made the host of this process wait for the device."""
    return _boxed.waits()
