# SPDX-License-Identifier: Apache-2.0
"""What kind of checkpoint it is: float, msModelSlim's, or another tool's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

from vllm_glm41v_npu.doctor.checkpoint import FLOATS, Checkpoint, Json
from vllm_glm41v_npu.doctor.context import Context
from vllm_glm41v_npu.doctor.finding import Finding, fail, ok, shortened, warn
from vllm_glm41v_npu.platform import ATLAS_310P

NAME = "checkpoint type"
DESCRIPTION = "quant_model_description.json"

LOADS_MSMODELSLIM = False
"""Whether this version loads msModelSlim's checkpoints."""

KNOWN_TYPES = ("FLOAT", "W8A8", "W8A8S", "W8A8SC", "W8A8_DYNAMIC")
ONLY_310P = ("W8A8S", "W8A8SC")

LOADED = ("compressed-tensors",)
PACKED = ("awq", "gptq", "awq_marlin", "gptq_marlin", "auto-round")

DEQ_SCALE_DTYPES = {"I64": "float16", "F32": "bfloat16"}
"""How msModelSlim stores deq_scale, and the dtype in which such a checkpoint has to run."""


def static_dtype(checkpoint: Checkpoint) -> str | None:
    """The dtype that the deq_scale tensors were made for, if there are any and they agree."""
    dtypes = {t.dtype for name, t in checkpoint.tensors.items() if name.endswith(".deq_scale")}
    return DEQ_SCALE_DTYPES.get(dtypes.pop()) if len(dtypes) == 1 else None


def is_quantised(checkpoint: Checkpoint) -> bool:
    return checkpoint.quantization_config is not None or checkpoint.has(DESCRIPTION)


def checkpoint_type(context: Context) -> Iterator[Finding]:
    """Float, or quantised by what."""
    checkpoint = context.checkpoint
    if checkpoint is None:
        return
    renamed = sorted(path.name for path in checkpoint.folder.glob("quant_model_description_*.json"))
    if checkpoint.has(DESCRIPTION):
        yield from _msmodelslim(checkpoint, context)
    elif renamed:
        yield fail(
            NAME,
            f"msModelSlim's for MindIE ({renamed[0]})",
            f"vLLM reads {DESCRIPTION}: quantise again without --mindie_format.",
        )
    elif checkpoint.quantization_config is not None:
        yield _other_tool(checkpoint.quantization_config)
    elif checkpoint.tensors:
        floats = Counter(FLOATS.get(t.dtype, t.dtype) for t in checkpoint.tensors.values())
        listed = ", ".join(f"{count} {dtype}" for dtype, count in floats.most_common())
        yield ok(NAME, f"not quantised (tensors: {listed})")


def _msmodelslim(checkpoint: Checkpoint, context: Context) -> Iterator[Finding]:
    description = checkpoint.read_json(DESCRIPTION)
    if description is None:
        yield fail(NAME, f"{DESCRIPTION} holds no JSON object", "Copy it again.")
        return
    kind, types = _types(description)
    listed = ", ".join(f"{count} {name}" for name, count in types.most_common())
    found = f"msModelSlim {kind} (tensors: {listed})"
    unknown = sorted({kind, *types}.difference(KNOWN_TYPES))
    backend = context.backend
    if unknown:
        advice = f"This package knows {', '.join(KNOWN_TYPES)}; quantise to one of them."
        yield fail(NAME, f"{found}, with the unknown {shortened(unknown)}", advice)
    elif (
        kind in ONLY_310P
        and backend is not None
        and backend.is_ascend
        and backend.name != ATLAS_310P.name
    ):
        advice = "Use a float, W8A8 or W8A8_DYNAMIC checkpoint there."
        yield fail(NAME, f"{found}, which only {ATLAS_310P.name} reads, not {backend.name}", advice)
    elif not LOADS_MSMODELSLIM:
        advice = "Loading these comes in a later version; use the float checkpoint until then."
        yield fail(NAME, f"{found}, which this version does not load", advice)
    else:
        yield ok(NAME, found)
    yield from _missing_tensors(checkpoint, description, kind)
    yield from _deq_scales(checkpoint)


def _types(description: Json) -> tuple[str, Counter[str]]:
    """The whole's type, and how many tensors have which."""
    # Other keys than tensors' have no dot.
    tensors = Counter(str(kind) for name, kind in description.items() if "." in name)
    return str(description.get("model_quant_type", "of no type")), tensors


def _missing_tensors(checkpoint: Checkpoint, description: Json, kind: str) -> Iterator[Finding]:
    """Tensors of the description that no file has; W8A8SC's files name them as vLLM does."""
    if kind == "W8A8SC" or checkpoint.bad_files or not checkpoint.tensors:
        return
    described = {name for name in description if "." in name}
    missing = sorted(described - checkpoint.tensors.keys())
    if missing:
        yield fail(
            "description",
            f"{DESCRIPTION} names {len(missing)} tensors that no file has: {shortened(missing)}",
            "Copy the description and the weights from the same run of msModelSlim.",
        )


def _deq_scales(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Whether all deq_scale tensors are of one dtype, and of a known one."""
    counts = Counter(
        t.dtype for name, t in checkpoint.tensors.items() if name.endswith(".deq_scale")
    )
    if not counts:
        return
    if len(counts) > 1 or not counts.keys() <= DEQ_SCALE_DTYPES.keys():
        advice = "They have to be all int64 (float16) or all float32 (bfloat16): quantise again."
        yield fail("deq_scale", f"stored as {json.dumps(counts)}", advice)


def _other_tool(config: Json) -> Finding:
    method = str(config.get("quant_method", "unknown"))
    if method in LOADED:
        return ok(NAME, f"quantised by {method}")
    if method in PACKED:
        advice = (
            "Weights packed by group do not load; use one quantised per channel or per tensor, or "
            "leave this plugin out with VLLM_PLUGINS."
        )
        return fail(NAME, f"quantised by {method}", advice)
    advice = "It is not tested with this package; one per channel or per tensor may load."
    return warn(NAME, f"quantised by {method}", advice)
