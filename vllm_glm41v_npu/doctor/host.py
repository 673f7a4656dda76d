# SPDX-License-Identifier: Apache-2.0
"""Checks of the host for vLLM's CPU backend."""

from __future__ import annotations

import os
from collections.abc import Iterator

from vllm_glm41v_npu.backends import has_bfloat16_instructions
from vllm_glm41v_npu.doctor.context import Context
from vllm_glm41v_npu.doctor.finding import Finding, fail, ok, size, skip, warn
from vllm_glm41v_npu.family import PUBLISHED_NAME
from vllm_glm41v_npu.planning.kv_cache import KV_SPACE, NoRoom, choose_kv_cache

USABLE = 0.92  # vLLM's default --gpu-memory-utilization, which on the CPU is of the host's memory


def cpu(context: Context) -> Iterator[Finding]:
    """Name the cores that this process may use, the memory, and the bfloat16 instructions."""
    quick = has_bfloat16_instructions(context.root / "proc/cpuinfo")
    cores = f"{len(os.sched_getaffinity(0))} cores"
    memory = "memory not known"
    if context.memory is not None:
        memory = f"{size(context.memory.available)} of {size(context.memory.total)} memory free"
    bfloat16 = "has bfloat16 instructions" if quick else "no bfloat16 instructions"
    yield ok("CPU", f"{cores}, {memory}, {bfloat16}")


def programs(context: Context) -> Iterator[Finding]:
    """Check the programs that vLLM runs on the CPU."""
    if context.on_ascend:
        return
    if context.program("lscpu") is None:
        advice = "Install it (Debian: apt install util-linux): it lists the cores to compute on."
        yield fail("lscpu", "not on PATH, and vLLM does not start without it", advice)
    else:
        yield ok("lscpu", "on PATH")
    compiler = context.environ.get("CXX") or "g++"
    if context.program(compiler) is not None:
        yield ok("C++ compiler", f"{compiler} on PATH")
    elif context.environ.get("TORCH_COMPILE_DISABLE") == "1":
        yield ok("C++ compiler", "none, and TORCH_COMPILE_DISABLE=1 does without")
    else:
        advice = "Install it (Debian: apt install g++), or set TORCH_COMPILE_DISABLE=1."
        yield warn("C++ compiler", f"{compiler} is not on PATH, and vLLM compiles with it", advice)


def kv_cache(context: Context) -> Iterator[Finding]:
    """Check that the memory is free that vLLM takes for the KV cache on the CPU."""
    if context.on_ascend:
        return
    value = context.environ.get(KV_SPACE, "")
    if value and not (value.strip().isdecimal() and int(value) > 0):
        yield fail("KV cache", f"{KV_SPACE}={value!r}", "Give a whole number of GiB, such as 4.")
    elif context.memory is None:
        yield skip("KV cache", "the host's memory is not known")
    elif value:
        taken, free = int(value) << 30, context.memory.available
        if taken > free:
            advice = f"Give {KV_SPACE} a smaller number of GiB."
            yield warn("KV cache", f"{KV_SPACE}={value}, and only {size(free)} are free", advice)
        else:
            yield ok("KV cache", f"{KV_SPACE}={value} (GiB)")
    elif context.memory.available < USABLE * context.memory.total:
        found = (
            f"{KV_SPACE} is not set, so vLLM wants {USABLE:.0%} of all memory, which is not free"
        )
        yield warn("KV cache", found, _advice(context))
    else:
        yield ok("KV cache", f"{KV_SPACE} is not set: {USABLE:.0%} of all memory")


def _advice(context: Context) -> str:
    """Return advice on a size for the checkpoint, or GLM-4.1V-9B-Thinking where none is named."""
    folder = context.model if context.located is None else context.located[0]
    environ = {**context.environ, KV_SPACE: ""}
    try:
        cache = choose_kv_cache(
            str(folder or PUBLISHED_NAME), environ=environ, root=context.root, on_cpu=True
        )
    except NoRoom as no_room:
        return str(no_room)
    gib = 4 if cache is None else max(1, cache.size >> 30)
    return (
        f"Run `export {KV_SPACE}={gib}` (GiB) before `vllm serve`; `glm41v serve`, `run` and `ask` "
        "choose a size themselves."
    )
