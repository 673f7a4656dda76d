# SPDX-License-Identifier: Apache-2.0
"""Checks of the kind of checkpoint: float, msModelSlim's, or another tool's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vllm_glm41v_npu.backends import Backend
from vllm_glm41v_npu.checkpoint.description import COMPRESSED, DEQ_SCALE_DTYPES, Description
from vllm_glm41v_npu.checkpoint.file_checks import quantization
from vllm_glm41v_npu.checkpoint.folder import FLOATS, Checkpoint
from vllm_glm41v_npu.checkpoint.names import DEQ_SCALE
from vllm_glm41v_npu.checkpoint.other_tools import NAME, tool_of
from vllm_glm41v_npu.doctor.context import Context
from vllm_glm41v_npu.doctor.finding import Finding, fail, of_problem, ok, shortened
from vllm_glm41v_npu.quant.w8a8sc.record import Record, ShardError


def static_dtype(checkpoint: Checkpoint) -> str | None:
    """Return the dtype that the deq_scale tensors were made for, if they are there and agree."""
    dtypes = _deq_scale_dtypes(checkpoint).keys()
    return DEQ_SCALE_DTYPES.get(next(iter(dtypes))) if len(dtypes) == 1 else None


def checkpoint_type(context: Context) -> Iterator[Finding]:
    """Name the type: float, or quantized and by which tool."""
    checkpoint = context.checkpoint
    if checkpoint is None:
        return
    stack = None if context.backend is None else context.backend.stack
    problem = next(quantization(checkpoint, stack), None)
    if problem is not None:
        yield of_problem(problem)
        return
    description = Description.read(checkpoint.folder)
    if description is not None:
        yield from _msmodelslim(checkpoint, description, context)
    elif tool := tool_of(checkpoint):
        yield ok(NAME, f"quantized by {tool}")
    elif checkpoint.tensors:
        floats = Counter(FLOATS.get(t.dtype, t.dtype) for t in checkpoint.tensors.values())
        listed = ", ".join(f"{count} {dtype}" for dtype, count in floats.most_common())
        yield ok(NAME, f"not quantized (tensors: {listed})")


def _msmodelslim(
    checkpoint: Checkpoint, description: Description, context: Context
) -> Iterator[Finding]:
    types = Counter(description.on_disk.values())
    listed = ", ".join(f"{count} {name}" for name, count in types.most_common())
    found = f"msModelSlim {description.kind} (tensors: {listed})"
    yield _whether_it_loads(checkpoint.folder, description, found, context)
    yield from _missing_tensors(checkpoint, description)
    yield from _deq_scales(checkpoint)


def _whether_it_loads(
    folder: Path, description: Description, found: str, context: Context
) -> Finding:
    backend = context.backend
    if backend is None:
        return ok(NAME, found)
    if description.kind == COMPRESSED:
        return _whether_shards_load(folder, found, backend)
    return ok(NAME, f"{found}, which loads on {backend.name} without --quantization")


def _whether_shards_load(folder: Path, found: str, backend: Backend) -> Finding:
    """Check shards by their record alone; their numbers are checked when they are loaded."""
    try:
        record = Record.read(folder)
        record.check_backend(backend)
    except ShardError as error:
        return fail(NAME, f"{found}, which does not load on {backend.name}", str(error))
    options = f"--load-format sharded_state --tensor-parallel-size {record.tp_size}"
    return ok(NAME, f"{found}, which loads on {backend.name} with {options}")


def _missing_tensors(checkpoint: Checkpoint, description: Description) -> Iterator[Finding]:
    """Check for tensors of the description that no file has; W8A8SC's files use vLLM's names."""
    if description.kind == COMPRESSED or checkpoint.bad_files or not checkpoint.tensors:
        return
    missing = sorted(description.on_disk.keys() - checkpoint.tensors.keys())
    if missing:
        yield fail(
            "description",
            f"{description.file} names {len(missing)} tensors that no file has: "
            f"{shortened(missing)}",
            "Copy the description and the weights from the same run of msModelSlim.",
        )


def _deq_scales(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Check that all deq_scale tensors have one dtype, and a known one."""
    counts = _deq_scale_dtypes(checkpoint)
    if not counts:
        return
    if len(counts) > 1 or not counts.keys() <= DEQ_SCALE_DTYPES.keys():
        advice = "They have to be all int64 (float16) or all float32 (bfloat16): quantize again."
        yield fail(DEQ_SCALE, f"stored as {json.dumps(counts)}", advice)


def _deq_scale_dtypes(checkpoint: Checkpoint) -> Counter[str]:
    """Return how many deq_scale tensors are stored in which dtype."""
    tensors = checkpoint.tensors.items()
    return Counter(tensor.dtype for name, tensor in tensors if name.endswith(f".{DEQ_SCALE}"))
