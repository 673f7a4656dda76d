# SPDX-License-Identifier: Apache-2.0
"""Rows of the collective operations, which HCCL carries out."""

from __future__ import annotations

from npu_emulator.chips.rules import Operator

MOVED = "int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 float32 float64 bool"
REDUCED = "int8 int16 int32 float16 float32"
# torch_npu reduces these two as int32.
REDUCED_AS_INT32 = "bool uint8"

DOCUMENTS = "cann/hccl: docs/zh/api_ref/comm_op_interface/"
MOVES = {
    "HcclAllGather.md": "_allgather_base_ allgather_ allgather_into_tensor_coalesced_",
    "HcclBroadcast.md": "broadcast_",
    "HcclScatter.md": "scatter_ gather_",
    "HcclSend.md": "send",
    "HcclRecv.md": "recv_ recv_any_source_",
    "HcclAlltoAllV.md": "alltoall_ alltoall_base_",
}
REDUCTIONS = {
    "HcclAllReduce.md": "allreduce_ allreduce_coalesced_",
    "HcclReduce.md": "reduce_",
    "HcclReduceScatter.md": "_reduce_scatter_base_ reduce_scatter_ "
    "reduce_scatter_tensor_coalesced_",
}


def collective_rows(moved: str = "", reduced: str = "") -> dict[str, Operator]:
    """Rows of c10d, with the dtypes that the chip moves and reduces beside the common ones."""
    rows = {"c10d::barrier": Operator(DOCUMENTS + "HcclBarrier.md")}
    for table, dtypes in (
        (MOVES, f"{MOVED} {moved}"),
        (REDUCTIONS, f"{REDUCED} {REDUCED_AS_INT32} {reduced}"),
    ):
        for document, names in table.items():
            row = Operator(DOCUMENTS + document, dtypes=tuple(dtypes.split()))
            rows.update({f"c10d::{name}": row for name in names.split()})
    return rows
