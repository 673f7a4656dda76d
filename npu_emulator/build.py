# SPDX-License-Identifier: Apache-2.0
"""`python -m npu_emulator.build`: make the libraries, in the environment that runs this.

Needs gcc, g++ and binutils; takes half a minute.
"""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
import time
from pathlib import Path

from . import stubs
from .settings import BUILT

SOURCE = Path(__file__).parent / "boxed.cpp"
PTH = "import npu_emulator.preload"


def compile_boxed(site: Path, out: Path) -> None:
    """Compile boxed.cpp against the torch and torch_npu in `site`."""
    includes = [
        site / "torch/include",
        site / "torch/include/torch/csrc/api/include",
        site / "torch_npu/include",
        site / "torch_npu/include/third_party/acl/inc",
        sysconfig.get_paths()["include"],
    ]
    module = out / f"_boxed{sysconfig.get_config_var('EXT_SUFFIX')}"
    command = [
        "g++", "-shared", "-fPIC", "-std=c++17", "-O1", "-D_GLIBCXX_USE_CXX11_ABI=1",
        *(f"-I{folder}" for folder in includes),
        SOURCE, "-o", module, f"-L{site / 'torch/lib'}",
        "-lc10", "-ltorch_cpu", "-ltorch_python", "-Wl,--unresolved-symbols=ignore-all",
    ]  # fmt: skip
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"g++ failed on {SOURCE}:\n{done.stderr[-4000:]}")


def main() -> None:
    """Build into BUILT, and let this environment's interpreters load it as they start."""
    missing = [name for name in ("gcc", "g++", "nm", "readelf") if not shutil.which(name)]
    if missing:
        raise SystemExit(f"Not on PATH: {', '.join(missing)}. Debian: apt install g++ binutils.")
    started = time.monotonic()
    site = Path(sysconfig.get_paths()["purelib"])
    shutil.rmtree(BUILT, ignore_errors=True)
    (pth := site / "npu_emulator.pth").unlink(missing_ok=True)
    libraries = stubs.generate(site, BUILT)
    print(f"{len(libraries)} stub libraries ({time.monotonic() - started:.0f} s)", flush=True)
    compile_boxed(site, BUILT)
    pth.write_text(PTH + "\n")
    print(f"boxed.cpp compiled ({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
