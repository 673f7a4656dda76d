# SPDX-License-Identifier: Apache-2.0
"""`python -m npu_emulator.build`: make the libraries, in the environment that runs this.

Needs gcc, g++ and binutils; takes half a minute. The libraries of an earlier build stay in place
until the new ones are complete, and processes that run keep theirs.
"""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path

from npu_emulator import stubs
from npu_emulator.settings import BUILT

SOURCE = Path(__file__).parent / "boxed.cpp"
PTH = "import npu_emulator.preload"


def compile_boxed(site: Path, out: Path) -> None:
    """Compile boxed.cpp against the torch and torch_npu in `site`, and the stubs in `out`."""
    includes = [
        site / "torch/include",
        site / "torch/include/torch/csrc/api/include",
        site / "torch_npu/include",
        site / "torch_npu/include/third_party/acl/inc",
        sysconfig.get_paths()["include"],
    ]
    libraries = [site / "torch/lib", site / "torch_npu/lib", out]
    module = out / f"_boxed{sysconfig.get_config_var('EXT_SUFFIX')}"
    command = [
        "g++", "-shared", "-fPIC", "-std=c++17", "-O1", "-D_GLIBCXX_USE_CXX11_ABI=1",
        *(f"-I{folder}" for folder in includes),
        SOURCE, "-o", module, *(f"-L{folder}" for folder in libraries),
        "-lc10", "-ltorch_cpu", "-ltorch_python", "-ltorch_npu", "-lascendcl",
        "-Wl,--unresolved-symbols=ignore-all",
    ]  # fmt: skip
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"g++ failed on {SOURCE}:\n{done.stderr[-4000:]}")


def replace(old: Path, new: Path) -> None:
    """Move the folder `new` to `old`, whatever was there."""
    with tempfile.TemporaryDirectory(dir=old.parent) as scrap:
        if old.exists():
            old.rename(Path(scrap) / "old")
        new.rename(old)


def main() -> None:
    """Build into BUILT, and let this environment's interpreters load it as they start."""
    missing = [name for name in ("gcc", "g++", "nm", "readelf") if not shutil.which(name)]
    if missing:
        raise SystemExit(f"Not on PATH: {', '.join(missing)}. Debian: apt install g++ binutils.")
    started = time.monotonic()
    site = Path(sysconfig.get_paths()["purelib"])
    with tempfile.TemporaryDirectory(dir=BUILT.parent) as folder:
        out = Path(folder) / "built"
        libraries = stubs.generate(site, out)
        print(f"{len(libraries)} stub libraries ({time.monotonic() - started:.0f} s)", flush=True)
        compile_boxed(site, out)
        replace(BUILT, out)
    (site / "npu_emulator.pth").write_text(PTH + "\n")
    print(f"boxed.cpp compiled ({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
