# SPDX-License-Identifier: Apache-2.0
"""Checks of whether this machine can serve GLM-4.1V, without starting an engine.

Files and programs of the host are checked in this process. Checks that need torch, which may crash,
run in another process (child.py). Nothing here imports torch, transformers or vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from vllm_glm41v_npu.doctor import ascend, host, model, quantized, software
from vllm_glm41v_npu.doctor.context import Context
from vllm_glm41v_npu.doctor.finding import Finding, warn

Check = Callable[[Context], Iterable[Finding]]

CHECKS: tuple[Check, ...] = (
    software.python,
    software.versions,
    software.torch,
    software.plugin,
    software.platform,
    ascend.npu,
    ascend.visible,
    ascend.driver,
    ascend.cann,
    ascend.atb,
    host.cpu,
    host.programs,
    host.kv_cache,
    software.pictures,
    software.videos,
    model.model,
    model.config_form,
    model.weights,
    quantized.checkpoint_type,
    model.companions,
    model.dtype,
    model.memory,
)


def examine(context: Context) -> Iterator[Finding]:
    """Yield all findings, each as soon as it is there."""
    for check in CHECKS:
        try:
            yield from check(context)
        except Exception as error:  # a check that breaks says so, and the others go on
            found = f"this check broke: {type(error).__name__}: {error}"
            yield warn(check.__name__, found, "Report it, with this line.")
