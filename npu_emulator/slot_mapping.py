# SPDX-License-Identifier: Apache-2.0
"""vLLM's slot mapping, a Triton kernel that vllm-ascend runs through triton-ascend on A2.

There is no Triton for this chip here, so the same arithmetic runs on the host's view of the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import npu_emulator._boxed as _boxed


class SlotMapping:
    """Stands for `_compute_slot_mapping_kernel`: called as kernel[grid](arguments)."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(
            num_tokens: int,
            max_num_tokens: int,
            query_start_loc: torch.Tensor,
            positions: torch.Tensor,
            block_table: torch.Tensor,
            block_table_stride: int,
            block_size: int,
            slot_mapping: torch.Tensor,
            *,
            TOTAL_CP_WORLD_SIZE: int,
            PAD_ID: int,
            **other: Any,
        ) -> None:
            if TOTAL_CP_WORLD_SIZE != 1:
                raise NotImplementedError("npu_emulator has no context parallelism.")
            if _boxed.is_capturing():
                raise NotImplementedError("npu_emulator cannot capture a Triton kernel.")
            slots = _boxed.host_view(slot_mapping)
            starts = _boxed.host_view(query_start_loc).long()
            where = _boxed.host_view(positions)
            table = _boxed.host_view(block_table)
            requests = grid[0] - 1  # one program more fills the rest
            lengths = starts[1 : requests + 1] - starts[:requests]
            row = torch.arange(requests).repeat_interleave(lengths)  # [tokens]
            where = where[: row.numel()]
            blocks = table[row, where // block_size].long()
            slots[: row.numel()] = (blocks * block_size + where % block_size).to(slots.dtype)
            slots[num_tokens:max_num_tokens] = PAD_ID

        return launch


def install() -> None:
    """Put it where vLLM, and with it vllm-ascend, takes the kernel from."""
    import vllm.v1.worker.block_table as block_table

    block_table._compute_slot_mapping_kernel = SlotMapping()
