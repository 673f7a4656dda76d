# SPDX-License-Identifier: Apache-2.0
"""Build an environment from the lock files; does nothing when it is up to date.

    python tools/build_env.py [cpu|ascend|page|docs]

`cpu` (the default) is .venv. `ascend` is .venv-ascend: vllm-ascend and the NPU that npu_emulator
makes for it. `page` is .venv-page: the chat page and a way into a browser, without vLLM. `docs` is
.venv-docs: what builds the documentation and the release. Run by `make` before every target that
needs one, with Python 3.11 or 3.12. It may be interrupted at any time and run again: the stamp that
says "done" is written last, and pip skips what is already installed. With CI=true (or 1) the wheels
are kept under ~/.cache, so that a fresh clone on the same machine does not download them again.
"""

from __future__ import annotations

import ctypes.util
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"
VLLM_NAME = LOCKS / "vllm-name"
EMULATOR = ROOT / "npu_emulator"
PYTHONS = ((3, 11), (3, 12))  # what the lock files have wheels for
CPU_NEEDS = {  # what vLLM uses on the CPU: Debian package, and why
    "g++": ("g++", "compiles its sampler (make turns that off; elsewhere TORCH_COMPILE_DISABLE=1)"),
    "lscpu": ("util-linux", "lists the cores to compute on, and vLLM does not start without it"),
    "libnuma.so.1": ("libnuma1", "is linked by its operators, which do not load without it"),
}
EMULATOR_NEEDS = {"gcc": "gcc", "g++": "g++", "nm": "binutils", "readelf": "binutils"}


@dataclass(frozen=True)
class Environment:
    """An environment: its packages and its folder.

    folder: where it is.
    locks: its lock files; a line of a later one replaces the earlier ones' of the same package.
    projects: folders in this repository, installed as editable.
    left_out: patterns of packages that the first lock file names and this environment lacks.
    compiled: what npu_emulator.build compiles, and with what; empty where it is not run.
    """

    folder: Path
    locks: tuple[Path, ...]
    projects: tuple[Path, ...]
    left_out: tuple[str, ...] = ()
    compiled: tuple[Path, ...] = ()

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def pins(self) -> dict[str, str]:
        """Package, spelt as in an index, to the line that pins it; in the order of the locks."""
        pins: dict[str, str] = {}
        for number, lock in enumerate(self.locks):
            for line in lock.read_text().splitlines():
                name = re.sub(r"[-_.]+", "-", line.split("==")[0]).lower()
                left_out = number == 0 and any(fnmatchcase(name, p) for p in self.left_out)
                if line and not line.startswith("#") and not left_out:
                    pins[name] = line
        return pins

    def fingerprint(self, *parts: str) -> str:
        """Hash of this Python and machine, all that is pinned, and `parts`."""
        what = [str(sys.version_info[:3]), platform.machine(), *self.pins().values(), *parts]
        return hashlib.sha256("\0".join(what).encode()).hexdigest()[:16]

    def pip(self, *arguments: str | Path) -> None:
        """Run its pip, showing one line per package; the end of pip's output if it fails."""
        command = [self.python, "-m", "pip", "--no-input", *arguments]
        process = subprocess.Popen(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert process.stdout is not None
        output, count = [], 0
        for line in process.stdout:
            output.append(line)
            if line.startswith(("Collecting ", "Processing ")):
                count += 1
                print(f"  {count:3d} {Path(line.split()[1]).name}", flush=True)
            elif line.startswith(("Building wheels", "Installing collected", "Saved ")):
                print(f"  {line.split(':')[0].strip()} ...", flush=True)
        if process.wait() != 0:
            sys.stdout.writelines(output[-40:])
            raise SystemExit(
                f"pip failed (its last lines are above) at: pip {' '.join(map(str, arguments))}\n"
                "Nothing is lost: run the same make target again to go on from here."
            )


ENVIRONMENTS = {
    "cpu": Environment(ROOT / ".venv", (LOCKS / "cpu.lock", LOCKS / "dev.lock"), (VLLM_NAME, ROOT)),
    "ascend": Environment(
        ROOT / ".venv-ascend",
        (LOCKS / "cpu.lock", LOCKS / "dev.lock", LOCKS / "ascend.lock"),
        (VLLM_NAME, ROOT, EMULATOR),
        left_out=("cuda-*", "intel-*", "nvidia-*", "triton"),  # ascend.lock says why
        compiled=(
            *(source for kind in ("*.c", "*.cpp", "*.h") for source in sorted(EMULATOR.glob(kind))),
            *(EMULATOR / name for name in ("build.py", "settings.py", "stubs.py")),
        ),
    ),
    "page": Environment(ROOT / ".venv-page", (LOCKS / "page.lock",), (ROOT,)),
    "docs": Environment(ROOT / ".venv-docs", (LOCKS / "docs.lock",), (ROOT,)),
}


def missing_programs() -> str:
    """One sentence on what of CPU_NEEDS is not there; empty where all is."""
    commands = {"g++": os.environ.get("CXX") or "g++"}  # torch compiles with CXX, and so with it
    missing = []
    for name in CPU_NEEDS:
        library = re.match(r"lib(\w+)\.so", name)
        found = ctypes.util.find_library(library[1]) if library else None
        if not found and not shutil.which(commands.get(name, name)):
            missing.append(name)
    if not missing:
        return ""
    reasons = "; ".join(f"{commands.get(name, name)} {CPU_NEEDS[name][1]}" for name in missing)
    packages = " ".join(CPU_NEEDS[name][0] for name in missing)
    return f"Warning: vLLM needs what is not here: {reasons}. Debian: apt install {packages}."


def check_compilers() -> None:
    """Stop, before anything is downloaded, where npu_emulator could not be compiled."""
    if missing := [name for name in EMULATOR_NEEDS if not shutil.which(name)]:
        packages = " ".join(dict.fromkeys(EMULATOR_NEEDS[name] for name in missing))
        raise SystemExit(
            f"The emulated NPU is compiled here, with what is not on PATH: {', '.join(missing)}. "
            f"Debian: apt install {packages}."
        )


def wheel_options(environment: Environment, lock: Path) -> list[str | Path]:
    """Where pip takes the wheels from: the user's indexes, or in CI a folder filled once."""
    if os.environ.get("CI", "").lower() not in ("1", "true"):
        return []
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllm-glm41v-npu"
    kind = f"wheels{environment.folder.name.removeprefix('.venv')}"  # "wheels", "wheels-ascend"
    python = f"{kind}-py{sys.version_info[0]}{sys.version_info[1]}"
    wheels = cache / f"{python}-{environment.fingerprint()}"
    if not wheels.exists():
        print(f"Filling {wheels} (once per lock file)", flush=True)
        fill(environment, wheels, lock)
        for old in cache.glob(f"{python}-*"):
            if old != wheels:
                shutil.rmtree(old, ignore_errors=True)
    return ["--no-index", "--find-links", wheels]


def fill(environment: Environment, wheels: Path, lock: Path) -> None:
    """Put the wheels of `lock` into `wheels`, which is there whole or not at all."""
    wheels.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=wheels.parent) as folder:
        partial = Path(folder) / "wheels"
        options = ("--no-deps", "--no-build-isolation", "--wheel-dir", partial)
        environment.pip("wheel", *options, "-r", lock)
        try:
            partial.rename(wheels)
        except OSError:
            if not wheels.exists():  # otherwise another process was first
                raise


def create_venv(folder: Path) -> None:
    """Make `folder` empty, unless it is a whole one of this very Python, made in this place."""
    config = folder / "pyvenv.cfg"
    if (folder / "bin" / "pip").exists():
        lines = config.read_text().splitlines()
        same_python = f"version = {platform.python_version()}" in lines
        # The scripts of a moved or copied one start the Python of the place it was made in.
        same_place = any(ln.startswith("command = ") and ln.endswith(f" {folder}") for ln in lines)
        if same_python and same_place:
            return
    print(f"Creating {folder} with Python {platform.python_version()}", flush=True)
    try:
        venv.create(folder, with_pip=True, clear=True)
    except subprocess.CalledProcessError:
        raise SystemExit(
            "This Python has no ensurepip, so it cannot make an environment: "
            "install its venv package (Debian: python3-venv) and run make again."
        ) from None


def install(environment: Environment) -> None:
    """Fill its folder: build tool, all that is pinned, and its projects."""
    pins = environment.pins()
    create_venv(environment.folder)
    print("Installing the build tool", flush=True)
    environment.pip("install", "--no-deps", pins["setuptools"])
    lock = environment.folder / "pinned.txt"
    lock.write_text("\n".join(pins.values()) + "\n")
    source = wheel_options(environment, lock)
    # Byte-compiling all of 6 GB takes a minute; Python compiles what is imported, when it is.
    options = ("--no-deps", "--no-build-isolation", "--no-compile")
    locks = ", ".join(path.name for path in environment.locks)
    print(f"Installing {len(pins)} packages ({locks})", flush=True)
    environment.pip("install", *options, *source, "-r", lock)
    print("Installing this project", flush=True)
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    editable = [word for project in environment.projects for word in ("--editable", project)]
    environment.pip("install", *offline, *editable)


def compile_emulator(environment: Environment) -> None:
    """Make the libraries that its interpreters load for an NPU."""
    print("Compiling the emulated NPU", flush=True)
    if subprocess.run([environment.python, "-m", "npu_emulator.build"], cwd=ROOT).returncode != 0:
        raise SystemExit("npu_emulator was not built, for the reason above.")


def steps(environment: Environment) -> Iterator[tuple[Path, str, Callable[[Environment], None]]]:
    """The parts of a build: the stamp of each, what it must hold, and what does the work."""
    projects = [folder / "pyproject.toml" for folder in environment.projects]
    parts = [str(ROOT), *(project.read_text() for project in projects)]
    yield environment.folder / "built-from", environment.fingerprint(*parts), install
    if environment.compiled:
        sources = [source.read_text() for source in environment.compiled]
        stamp = environment.folder / "emulator-from"
        yield stamp, environment.fingerprint(*sources), compile_emulator


def main(name: str = "cpu", *rest: str) -> None:
    """Do those steps of a build whose stamp does not say that they were done with these files."""
    if name not in ENVIRONMENTS or rest:
        raise SystemExit(f"There is no such environment: choose {' or '.join(ENVIRONMENTS)}.")
    if sys.version_info[:2] not in PYTHONS:
        raise SystemExit(
            f"The lock files are for Python 3.11 and 3.12 and this is {platform.python_version()}: "
            "name another with `make PYTHON=/path/to/python3.11 ...`."
        )
    environment = ENVIRONMENTS[name]
    if name == "cpu" and (warning := missing_programs()):
        print(warning, file=sys.stderr, flush=True)
    started, worked = time.monotonic(), False
    try:
        for stamp, wanted, work in steps(environment):
            if stamp.exists() and stamp.read_text() == wanted:
                continue
            if environment.compiled:
                check_compilers()
            stamp.unlink(missing_ok=True)
            work(environment)
            stamp.write_text(wanted)
            worked = True
    except KeyboardInterrupt:
        raise SystemExit("\nInterrupted: run make again to go on from here.") from None
    if worked:
        print(f"The environment is ready ({time.monotonic() - started:.0f} s).", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
