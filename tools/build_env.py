# SPDX-License-Identifier: Apache-2.0
"""Build the CPU environment in .venv from the lock files; does nothing when it is up to date.

Run by `make` before every target that needs the environment, with Python 3.11 or 3.12. It may be
interrupted at any time and run again: the stamp that says "done" is written last, and pip skips
what is already installed. With CI=true (or 1) the wheels are kept under ~/.cache, so that a fresh
clone on the same machine does not download them again.
"""

from __future__ import annotations

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
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "built-from"
LOCKS = [ROOT / "requirements" / name for name in ("cpu.lock", "dev.lock")]
VLLM_NAME = ROOT / "requirements" / "vllm-name"
PYTHONS = ((3, 11), (3, 12))  # what the lock file has wheels for
PROGRAMS = {  # what vLLM runs on the CPU: Debian package, and why
    "g++": ("g++", "compiles its sampler (make turns that off; elsewhere TORCH_COMPILE_DISABLE=1)"),
    "lscpu": ("util-linux", "lists the cores to compute on, and vLLM does not start without it"),
}


def fingerprint(*parts: str) -> str:
    """Hash of this Python and machine, the lock files, and `parts`."""
    digest = hashlib.sha256(f"{sys.version_info[:3]} {platform.machine()}".encode())
    for lock in LOCKS:
        digest.update(lock.read_bytes())
    for part in parts:
        digest.update(part.encode())
    return digest.hexdigest()[:16]


def pinned(package: str) -> str:
    """The line of the lock files that pins `package`."""
    lines = "\n".join(lock.read_text() for lock in LOCKS)
    match = re.search(rf"^{re.escape(package)}==\S+", lines, re.MULTILINE)
    if match is None:
        raise SystemExit(f"No lock file in requirements/ pins {package}; add a line for it.")
    return match.group()


def pip(*arguments: str | Path) -> None:
    """Run the environment's pip, showing one line per package; its whole output if it fails."""
    command = [VENV / "bin" / "python", "-m", "pip", "--no-input", *arguments]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
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


def missing_programs() -> str:
    """One sentence on the PROGRAMS that are not on PATH; empty where all are."""
    commands = {"g++": os.environ.get("CXX") or "g++"}  # torch compiles with CXX, and so with it
    missing = [name for name in PROGRAMS if not shutil.which(commands.get(name, name))]
    if not missing:
        return ""
    reasons = "; ".join(f"{commands.get(name, name)} {PROGRAMS[name][1]}" for name in missing)
    packages = " ".join(PROGRAMS[name][0] for name in missing)
    return f"Warning: vLLM needs what is not on PATH: {reasons}. Debian: apt install {packages}."


def wheel_options() -> list[str | Path]:
    """Where pip takes the wheels from: the user's indexes, or in CI a folder filled once."""
    if os.environ.get("CI", "").lower() not in ("1", "true"):
        return []
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllm-glm41v-npu"
    python = f"wheels-py{sys.version_info[0]}{sys.version_info[1]}"
    wheels = cache / f"{python}-{fingerprint()}"
    if not wheels.exists():
        print(f"Filling {wheels} (once per lock file)", flush=True)
        fill(wheels)
        for old in cache.glob(f"{python}-*"):
            if old != wheels:
                shutil.rmtree(old, ignore_errors=True)
    return ["--no-index", "--find-links", wheels]


def fill(wheels: Path) -> None:
    """Put the wheels of the lock files into `wheels`, which is there whole or not at all."""
    wheels.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=wheels.parent) as folder:
        partial = Path(folder) / "wheels"
        locks = [argument for lock in LOCKS for argument in ("-r", lock)]
        pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", partial, *locks)
        try:
            partial.rename(wheels)
        except OSError:
            if not wheels.exists():  # otherwise another process was first
                raise


def create_venv() -> None:
    """Make an empty .venv, unless there is a whole one of this very Python, made in this place."""
    config = VENV / "pyvenv.cfg"
    if (VENV / "bin" / "pip").exists():
        lines = config.read_text().splitlines()
        same_python = f"version = {platform.python_version()}" in lines
        # The scripts of a moved or copied one start the Python of the place it was made in.
        same_place = any(ln.startswith("command = ") and ln.endswith(f" {VENV}") for ln in lines)
        if same_python and same_place:
            return
    print(f"Creating {VENV} with Python {platform.python_version()}", flush=True)
    try:
        venv.create(VENV, with_pip=True, clear=True)
    except subprocess.CalledProcessError:
        raise SystemExit(
            "This Python has no ensurepip, so it cannot make an environment: "
            "install its venv package (Debian: python3-venv) and run make again."
        ) from None


def build() -> None:
    """Fill .venv: build tool, lock files, the name `vllm`, and this project as editable."""
    create_venv()
    print("Installing the build tool", flush=True)
    pip("install", "--no-deps", pinned("setuptools"))
    source = wheel_options()
    # Byte-compiling all of 6 GB takes a minute; Python compiles what is imported, when it is.
    options = ("--no-deps", "--no-build-isolation", "--no-compile")
    for lock in LOCKS:
        print(f"Installing {lock.relative_to(ROOT)}", flush=True)
        pip("install", *options, *source, "-r", lock)
    print("Installing this project", flush=True)
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    pip("install", *offline, VLLM_NAME, "--editable", ROOT)


def main() -> None:
    """Build the environment unless its stamp already says it was built from these files."""
    if sys.version_info[:2] not in PYTHONS:
        raise SystemExit(
            f"The lock files are for Python 3.11 and 3.12 and this is {platform.python_version()}: "
            "name another with `make PYTHON=/path/to/python3.11 ...`."
        )
    if warning := missing_programs():
        print(warning, file=sys.stderr, flush=True)
    projects = [ROOT / "pyproject.toml", VLLM_NAME / "pyproject.toml"]
    wanted = fingerprint(str(ROOT), *(project.read_text() for project in projects))
    if STAMP.exists() and STAMP.read_text() == wanted:
        return
    started = time.monotonic()
    STAMP.unlink(missing_ok=True)
    try:
        build()
    except KeyboardInterrupt:
        raise SystemExit("\nInterrupted: run make again to go on from here.") from None
    STAMP.write_text(wanted)
    print(f"The environment is ready ({time.monotonic() - started:.0f} s).", flush=True)


if __name__ == "__main__":
    main()
