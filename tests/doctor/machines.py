# SPDX-License-Identifier: Apache-2.0
"""Machines made of files, variables and programs."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

from vllm_glm41v_npu import doctor
from vllm_glm41v_npu.doctor.context import Context
from vllm_glm41v_npu.doctor.finding import Finding

BFLOAT16 = (
    "from vllm_glm41v_npu import backends; backends.has_bfloat16_instructions = lambda *_: True"
)
"""As FAKE_VLLM, makes any CPU one that computes in bfloat16."""
GIB = 1 << 30

# A vLLM, and a transformers, that import in no time. What this package does with them is real.
FAKES = {
    "vllm/__init__.py": "",
    "vllm/platforms.py": """
        import os
        exec(os.environ.get("FAKE_VLLM", ""))
        class FakePlatform:
            device_type = os.environ["FAKE_DEVICE"]
            def is_cpu(self): return self.device_type == "cpu"
        current_platform = FakePlatform()""",
    "vllm/plugins.py": """
        import os
        from vllm.model_executor.models.registry import ModelRegistry
        def load_general_plugins():
            ours = "glm41v_npu" in os.environ.get("VLLM_PLUGINS", "glm41v_npu")
            module = "vllm_glm41v_npu.models.glm41v" if ours else "vllm.models.glm4_1v"
            ModelRegistry.models["Glm4vForConditionalGeneration"].module_name = module""",
    "vllm/model_executor/__init__.py": "",
    "vllm/model_executor/models/__init__.py": "",
    "vllm/model_executor/models/registry.py": """
        class Entry: module_name = "vllm.models.glm4_1v"
        class ModelRegistry: models = {"Glm4vForConditionalGeneration": Entry()}""",
    "vllm_ascend/__init__.py": "",
    "vllm_ascend/utils.py": """
        import os
        class Chip: name = os.environ.get("FAKE_CHIP")
        def get_ascend_device_type(): return Chip""",
    "transformers/__init__.py": "class AutoConfig: pass",
    "transformers/models/__init__.py": "",
    "transformers/models/glm4v/__init__.py": "",
    "transformers/models/glm4v/configuration_glm4v.py": "class Glm4vConfig: pass",
}

ASCEND_DEMANDS = ("torch==2.10.0", "torch-npu==2.10.0.post4", "torchvision==0.25.0")

DUO = """
+--------------------------------------------------------------------------------------------------------+
| npu-smi 25.2.0                                   Version: 25.2.0                                       |
+-------------------------------+-----------------+------------------------------------------------------+
| NPU     Name                  | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===============================+=================+======================================================+
| 2       310P3                 | OK              | NA           45                0     / 0             |
| 0       0                     | 0000:01:00.0    | 0            1529 / 44280                            |
+-------------------------------+-----------------+------------------------------------------------------+
| 2       310P3                 | OK              | NA           43                0     / 0             |
| 1       1                     | 0000:01:00.0    | 0            1412 / 43693                            |
+===============================+=================+======================================================+
+-------------------------------+-----------------+------------------------------------------------------+
| NPU     Chip                  | Process id      | Process name             | Process memory(MB)        |
+===============================+=================+======================================================+
| No running processes found in NPU 2                                                                    |
+===============================+=================+======================================================+
"""  # noqa: E501

A2 = """
+------------------------------------------------------------------------------------------------+
| npu-smi 24.1.rc2                 Version: 24.1.rc2                                             |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 4     910B3               | OK            | 94.6        37                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3359 / 65536         |
+===========================+===============+====================================================+
| 5     910B3               | Alarm         | 90.5        33                0    / 0             |
| 0                         | 0000:C2:00.0  | 0           0    / 0          41697/ 65536         |
+===========================+===============+====================================================+
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 5       0                 | 692318        | python                   | 37974                   |
+===========================+===============+====================================================+
"""

A3 = """
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     Ascend910           | OK            | 178.5       36                0    / 0             |
| 0     0                   | 0000:9D:00.0  | 0           0    / 0          3416 / 65536         |
+------------------------------------------------------------------------------------------------+
| 0     Ascend910           | OK            | -           36                0    / 0             |
| 1     1                   | 0000:9F:00.0  | 0           0    / 0          3195 / 65536         |
+===========================+===============+====================================================+
"""


def say(context: Context, name: str) -> Finding:
    """The one finding of this name."""
    (finding,) = (finding for finding in doctor.examine(context) if finding.name == name)
    return finding


def summary(context: Context) -> dict[str, str]:
    return {finding.name: finding.status for finding in doctor.examine(context)}


def write_memory(root: Path, total: int, available: int) -> None:
    (root / "proc").mkdir(exist_ok=True)
    amounts = (f"MemTotal: {total << 20} kB", f"MemAvailable: {available << 20} kB")
    (root / "proc" / "meminfo").write_text("\n".join(amounts) + "\n")
    (root / "proc" / "cpuinfo").write_text("flags : avx2\n")


def install(monkeypatch, tmp_path: Path, name: str, version: str, *demands: str) -> None:
    """Let importlib.metadata find a distribution, before any other of its name."""
    folder = tmp_path / "site"
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {demand}" for demand in demands]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(folder)


def write_program(context: Context, name: str, script: str) -> None:
    path = Path(context.environ["PATH"]) / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def write_table(context: Context, table: str) -> None:
    cat = shutil.which("cat")
    write_program(context, "npu-smi", f'[ "$1" = info ] && {cat} <<"END"\n{table}\nEND')


def write_cann(root: Path, version: str) -> dict[str, str]:
    """CANN and nnal as their installers lay them out; returns what their set_env.sh set."""
    ascend = root / "usr" / "local" / "Ascend"
    toolkit = ascend / f"cann-{version}" / "aarch64-linux"
    library = ascend / "nnal" / "atb" / version / "atb" / "cxx_abi_1"
    for folder in (toolkit, library, ascend / "driver", ascend / "cann"):
        folder.mkdir(parents=True)
    (toolkit / "ascend_toolkit_install.info").write_text(
        f"package_name=Ascend-cann-toolkit\nversion={version}\ninnerversion=V100R001C23\n"
        "compatible_version=[V100R001C15],[V100R001C18]\narch=aarch64\nos=linux\n"
    )
    (library.parents[1] / "version.info").write_text(
        f"    Ascend-cann-atb : {version}\n    Ascend-cann-atb Version : {version}.B150\n"
    )
    (ascend / "driver" / "version.info").write_text(
        "Version=25.3.rc1\nascendhal_version=7.35.23\npackage_version=25.3.rc1\n"
    )
    for script in ("cann/set_env.sh", "nnal/atb/set_env.sh"):
        (ascend / script).touch()
    return {"ASCEND_TOOLKIT_HOME": str(toolkit.parent), "ATB_HOME_PATH": str(library)}


def write_weights(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """A safetensors file of the right size, all zeros, which takes no place on the disk."""
    sizes = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start = end
        count = sizes[dtype]
        for dim in shape:
            count *= dim
        end = start + count
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
