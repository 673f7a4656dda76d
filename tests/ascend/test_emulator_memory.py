# SPDX-License-Identifier: Apache-2.0
"""Memory of the emulated NPU: what is allocated is counted, for each device."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator

import pytest
import torch

pytestmark = [pytest.mark.ascend, pytest.mark.usefixtures("emulated")]
MIB = 1 << 20
SLACK = 4 * MIB  # the caching allocator takes 2 MiB at a time


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    gc.collect()  # what earlier tests left in cycles goes now, not while a test counts
    torch.npu.empty_cache()
    yield
    torch.npu.empty_cache()


def free(device: int = 0) -> int:
    return torch.npu.mem_get_info(device)[0]


@pytest.mark.parametrize("size", [30, 100, 1000])  # more than a rest of a segment of the cache
def test_what_is_allocated_is_taken_and_given_back(size: int) -> None:
    before = free()
    x = torch.empty(size * MIB, dtype=torch.int8, device="npu")
    assert size * MIB <= before - free() <= size * MIB + SLACK
    assert torch.npu.memory_allocated() >= size * MIB
    del x
    torch.npu.empty_cache()
    assert free() == before


def test_the_memory_is_what_the_settings_say() -> None:
    from npu_emulator.settings import MEMORY_GIB

    total = int(os.environ.get("NPU_EMULATOR_MEMORY_GIB", MEMORY_GIB)) << 30
    assert torch.npu.mem_get_info()[1] == total
    assert torch.npu.get_device_properties(0).total_memory == total


def test_more_than_there_is_is_refused_and_takes_nothing() -> None:
    before = free()
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        torch.empty(before + MIB, dtype=torch.int8, device="npu")
    assert free() == before


def test_each_device_has_a_count_of_its_own() -> None:
    first, second = free(0), free(1)
    x = torch.ones(64 * MIB, dtype=torch.int8, device="npu:1")
    assert free(0) == first
    assert second - free(1) >= 64 * MIB
    assert torch.npu.current_device() == 0
    del x  # while the other device is the current one
    torch.npu.empty_cache()
    assert (free(0), free(1)) == (first, second)


def test_there_is_no_other_device() -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.zeros(1, device=f"npu:{torch.npu.device_count()}")


def test_memory_goes_back_to_the_device_that_it_came_from() -> None:
    runtime, pointer = ctypes.CDLL("libascendcl.so"), ctypes.c_void_p()
    before = free(0), free(1)
    with torch.npu.device(0):
        assert runtime.aclrtMalloc(ctypes.byref(pointer), ctypes.c_ulong(MIB), 0) == 0
    assert (free(0), free(1)) == (before[0] - MIB, before[1])
    with torch.npu.device(1):
        assert runtime.aclrtFree(pointer) == 0
    assert (free(0), free(1)) == before
