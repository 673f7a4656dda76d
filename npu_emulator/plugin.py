# SPDX-License-Identifier: Apache-2.0
"""The entry point in `vllm.general_plugins`: every process of vLLM gets the emulated NPU."""

from __future__ import annotations


def register() -> None:
    from vllm.platforms import current_platform

    if current_platform.device_type == "npu":
        from npu_emulator import emulator, slot_mapping

        emulator.install()
        slot_mapping.install()
