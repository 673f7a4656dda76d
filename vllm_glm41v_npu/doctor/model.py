# SPDX-License-Identifier: Apache-2.0
"""Checks of the checkpoint, and of its fit to this machine."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vllm_glm41v_npu.backends import Backend
from vllm_glm41v_npu.checkpoint import file_checks, processor_files
from vllm_glm41v_npu.checkpoint.folder import INDEX, Checkpoint
from vllm_glm41v_npu.checkpoint.names import NETWORK, NEWER, OLDER
from vllm_glm41v_npu.checkpoint.other_tools import tool_of
from vllm_glm41v_npu.checks import resolved_dtype
from vllm_glm41v_npu.doctor.context import Context
from vllm_glm41v_npu.doctor.finding import (
    Finding,
    fail,
    of_problem,
    ok,
    shortened,
    size,
    skip,
    warn,
)
from vllm_glm41v_npu.doctor.quantized import static_dtype
from vllm_glm41v_npu.family import MODEL_TYPE

NAMINGS = {  # beginnings of tensor names: who writes them
    NEWER.text: f"newer names ({NEWER.text}, {NEWER.vision})",
    f"{OLDER.text}layers.": f"older names ({OLDER.text}, {OLDER.vision})",
    NETWORK.text: f"vLLM's own names ({NETWORK.text}, {NETWORK.vision})",
}
FOR_WEIGHTS = 0.8
"""The share of a chip's memory that weights may take, beside activations and the KV cache."""


def model(context: Context) -> Iterator[Finding]:
    """Name the place of the checkpoint."""
    if context.located is not None:
        yield context.located[1]


def config_form(context: Context) -> Iterator[Finding]:
    """Name the form of config.json, one of three, and check that this package reads it."""
    checkpoint = context.checkpoint
    if checkpoint is None:
        return
    if checkpoint.config is None:
        there = checkpoint.has("config.json")
        found = "it holds no JSON object" if there else f"there is none in {checkpoint.folder}"
        yield fail("config.json", found, "Give the checkpoint's folder, or download it again.")
        return
    kind = checkpoint.config.get("model_type")
    if kind != MODEL_TYPE:
        advice = f"This package serves GLM-4.1V alone, whose model_type is {MODEL_TYPE!r}."
        yield fail("config.json", f"model_type is {kind!r}", advice)
        return
    form, answer = _form(checkpoint), context.answers["config"]
    if "refused" in answer:
        yield fail("config.json", form, answer["refused"])
    elif "error" in answer:
        yield warn("config.json", f"{form}; not checked: {answer['error']}", "Fix that first.")
    else:
        yield ok("config.json", form)


def _form(checkpoint: Checkpoint) -> str:
    if not isinstance((checkpoint.config or {}).get("text_config"), dict):
        return "flat, as in July 2025"
    if "rope_parameters" in checkpoint.text_config:
        return "text_config with rope_parameters, as transformers 5 writes it"
    return "text_config with rope_scaling, as from October 2025"


def weights(context: Context) -> Iterator[Finding]:
    """Check that all weight files are there and whole, and name the naming of their tensors."""
    checkpoint = context.checkpoint
    if checkpoint is None or checkpoint.config is None:
        return
    files, bad = checkpoint.weight_files, checkpoint.bad_files
    if not files:
        advice = "vLLM downloads a hub model when it starts; otherwise copy the weights there."
        yield warn("weights", f"no *.safetensors in {checkpoint.folder}", advice)
        return
    if bad:
        listed = shortened(f"{name} {trouble}" for name, trouble in bad.items())
        found = f"{len(bad)} of {len(files)} files cannot be used: {listed}"
        pointers = any("git-lfs" in trouble for trouble in bad.values())
        advice = "Run `git lfs pull` there." if pointers else "Download or copy them again."
        yield fail("weights", found, advice)
        return
    absent = sorted(checkpoint.index.keys() - checkpoint.tensors.keys())
    if absent:
        found = f"{INDEX} names {len(absent)} tensors that no file has: {shortened(absent)}"
        yield fail("weights", found, "Download the index and the files again, of one revision.")
        return
    if problem := next(file_checks.tensor_names(checkpoint), None):
        yield of_problem(problem)
        return
    naming = _naming(checkpoint)
    total = size(sum(tensor.size for tensor in checkpoint.tensors.values()))
    counted = f"{len(checkpoint.tensors)} tensors in {len(files)} whole file(s), {total}"
    if naming is None:
        advice = "Check that these are GLM-4.1V's weights: their names are of no known kind."
        yield warn("weights", f"{counted}, such as {shortened(checkpoint.tensors, 2)}", advice)
    else:
        yield ok("weights", f"{counted}, {naming}")


def _naming(checkpoint: Checkpoint) -> str | None:
    for beginning, naming in NAMINGS.items():
        if any(name.startswith(beginning) for name in checkpoint.tensors):
            return naming
    return None


def companions(context: Context) -> Iterator[Finding]:
    """Check the files beside the weights: tokenizer, token ids, processors, chat template."""
    checkpoint = context.checkpoint
    if checkpoint is None or checkpoint.config is None:
        return
    if not checkpoint.weight_files:  # a hub model that is not downloaded yet
        yield skip("tokenizer", "not downloaded")
        return
    good = {
        "tokenizer": ", ".join(file_checks.NEEDED),
        "token ids": "those of the tokenizer",
        "video processor": processor_files.VIDEO_CLASS,
        "chat template": file_checks.template_file(checkpoint) or "",
    }
    checks = (
        file_checks.companions,
        file_checks.token_ids,
        file_checks.videos,
        file_checks.chat_template,
    )
    for (name, found), check in zip(good.items(), checks, strict=True):
        problem = next(check(checkpoint, checkpoint), None)
        yield ok(name, found) if problem is None else of_problem(problem)


def _auto_dtype(checkpoint: Checkpoint, backend: Backend) -> str:
    return resolved_dtype(backend, checkpoint.dtype, tool_of(checkpoint) is not None)


def dtype(context: Context) -> Iterator[Finding]:
    """Check that the dtype to run in suits the backend and the checkpoint's scales."""
    checkpoint, backend = context.checkpoint, context.backend
    if backend is None:
        yield skip("dtype", "depends on the platform, which is not known")
        return
    if checkpoint is None or checkpoint.config is None:
        auto = backend.auto_dtype or "the checkpoint's (bfloat16 for float32)"
        allowed = ", ".join(backend.dtypes)
        yield ok("dtype", f"--dtype auto is {auto} on {backend.name}, which runs {allowed}")
        return
    auto, made_for = _auto_dtype(checkpoint, backend), static_dtype(checkpoint)
    if made_for is not None and made_for not in backend.dtypes:
        found = f"the scales were made for {made_for}, and {backend.name} runs in {auto}"
        yield fail("dtype", found, f"Quantize the {auto} model: its deq_scale is int64.")
    elif made_for is not None and auto not in (made_for, "float32"):
        found = f"the scales were made for {made_for}, and --dtype auto is {auto}"
        yield warn("dtype", found, f"Start with --dtype {made_for}: otherwise they are misread.")
    else:
        found = f"{auto} by --dtype auto on {backend.name}; the checkpoint is {checkpoint.dtype}"
        yield ok("dtype", found)


def memory(context: Context) -> Iterator[Finding]:
    """Check that the weights fit the memory, in the dtype they run in."""
    checkpoint, backend = context.checkpoint, context.backend
    if checkpoint is None or not checkpoint.tensors or checkpoint.bad_files:
        return
    run_in = checkpoint.dtype if backend is None else _auto_dtype(checkpoint, backend)
    needed = sum(tensor.size_in(run_in) for tensor in checkpoint.tensors.values())
    what = f"{size(needed)} of weights in {run_in}"
    if context.on_ascend:
        yield from _npu_memory(context, needed, what)
    else:
        yield from _host_memory(context, needed, what)


def _npu_memory(context: Context, needed: int, what: str) -> Iterator[Finding]:
    chips = context.visible_chips
    if not chips:
        yield skip("model memory", f"{what}; the NPU's memory is not known")
        return
    total = min(chip.total for chip in chips)
    have = f"{len(chips)} chip(s) of {size(total)}"
    count = math.ceil(needed / max(1.0, FOR_WEIGHTS * total))
    if count == 1:
        yield ok("model memory", f"{what}; {have}")
    elif count <= len(chips):
        advice = f"Start with --tensor-parallel-size {1 << (count - 1).bit_length()}."
        yield warn("model memory", f"{what}, more than one chip takes; {have}", advice)
    else:
        advice = "Use a quantized checkpoint, or more chips."
        yield fail("model memory", f"{what}, more than all chips take; {have}", advice)


def _host_memory(context: Context, needed: int, what: str) -> Iterator[Finding]:
    if context.memory is None:
        yield skip("model memory", f"{what}; the host's memory is not known")
        return
    have = f"{size(context.memory.available)} of {size(context.memory.total)} are free"
    if needed > context.memory.total:
        advice = "Use a machine with more memory, or --dtype bfloat16 where auto is float32."
        yield fail("model memory", f"{what}; {have}", advice)
    elif needed > context.memory.available:
        advice = "End other programs, or use --dtype bfloat16 where auto is float32."
        yield warn("model memory", f"{what}; {have}", advice)
    else:
        yield ok("model memory", f"{what}; {have}")
