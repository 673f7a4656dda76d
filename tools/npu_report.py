# SPDX-License-Identifier: Apache-2.0
"""Run the end-to-end tests on the NPU of this machine, and write one file to send.

    python tools/npu_report.py

In the Python that has vllm-ascend; it is what `make test-npu` runs. The report is
npu-report-<chip>-<date>.zip in the top folder of the repository, written also when tests fail or
are interrupted: doctor.json, what `glm41v doctor --json` prints; pytest.xml, the tests' results;
run.log, what both printed. NPU_CHIP names the chip where the device's own name will not do, and
GLM41V_MODEL the folder of the real weights.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
# Nothing else is collected: other tests import what is not there.
TESTS = [name for name in ("tests/ascend", "tests/end_to_end") if (ROOT / name).is_dir()]
CHIPS = {"Ascend910B": "A2", "Ascend310P": "310P"}  # by how torch_npu names the device
DOCTOR = [sys.executable, "-c", "from vllm_glm41v_npu.cli import app; app()", "doctor", "--json"]
PYTEST = [sys.executable, "-m", "pytest", "-m", "npu", "-ra"]
PROBE = [
    sys.executable,
    "-c",
    "import json, sys, torch, torch_npu; count = torch.npu.device_count(); "
    "name = torch.npu.get_device_name(0) if count else ''; "
    "print(json.dumps([name, count, 'npu_emulator.preload' in sys.modules]))",
]
"""Prints the answer in its last line, after whatever the libraries say as they load."""


@dataclass(frozen=True)
class Device:
    """Return torch_npu's words about this machine."""

    name: str
    count: int
    emulated: bool

    @property
    def chip(self) -> str:
        """For the report's name."""
        known = (chip for start, chip in CHIPS.items() if self.name.startswith(start))
        chip = os.environ.get("NPU_CHIP") or next(known, self.name)
        return re.sub(r"[^\w.-]+", "-", "emulated-" * self.emulated + chip)


def find_device() -> Device:
    """The devices of this machine; raises SystemExit where there is none."""
    probe = subprocess.run(PROBE, cwd=ROOT, text=True, capture_output=True)
    lines = (probe.stderr if probe.returncode else probe.stdout).splitlines() or ["no output"]
    if probe.returncode == 0 and (device := Device(*json.loads(lines[-1]))).count:
        return device
    why = f" ({lines[-1].strip()})" if probe.returncode else ""
    raise SystemExit(
        f"torch_npu sees no NPU in {sys.executable}{why}: give the Python of vllm-ascend with "
        "PYTHON_NPU=..., and see parts 2 and 7 of docs/hardware.md."
    )


def commit() -> str:
    try:
        command = ["git", "describe", "--always", "--dirty"]
        return subprocess.run(command, cwd=ROOT, text=True, capture_output=True).stdout.strip()
    except OSError:
        return ""


def run(command: list[str], out: IO[str], log: Path) -> int:
    """Run `command` with its stdout in `out`, showing what is added to `log`; its exit code.

    A file and not a pipe: engines that outlive the command would keep a pipe open.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with log.open("a") as errors, log.open(errors="replace") as shown:
        shown.seek(0, os.SEEK_END)
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=errors)
        while True:
            try:
                ended = process.poll() is not None
                print(shown.read(), end="", flush=True)
                if ended:
                    return process.returncode
                time.sleep(0.2)
            except KeyboardInterrupt:
                pass  # the command got it too, and still writes what it has


def fill(folder: Path, device: Device) -> int:
    """Write the report's files to `folder`; returns pytest's exit code."""
    log, model = folder / "run.log", os.environ.get("GLM41V_MODEL")
    log.write_text(
        f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}, commit {commit() or 'unknown'}\n"
        f"{device.count} x {device.name}{' (emulated)' * device.emulated}\n{sys.executable}\n\n"
    )
    print(log.read_text() + "glm41v doctor ...", flush=True)
    with (folder / "doctor.json").open("w") as out:
        doctor = run([*DOCTOR, *(["--model", model] if model else [])], out, log)
    if doctor != 0:
        print("glm41v doctor found what does not work, or failed; the tests are run all the same.")
    with log.open("a") as out:
        return run([*PYTEST, f"--junitxml={folder / 'pytest.xml'}", *TESTS], out, log)


def main(target: Path = ROOT) -> int:
    """Write the report into `target`; returns pytest's exit code."""
    device = find_device()
    report = target / f"npu-report-{device.chip}-{time.strftime('%Y-%m-%d-%H%M%S')}.zip"
    with tempfile.TemporaryDirectory() as folder:
        try:
            return fill(Path(folder), device)
        finally:
            with zipfile.ZipFile(report, "w", zipfile.ZIP_DEFLATED) as archive:
                for file in sorted(Path(folder).iterdir()):
                    archive.write(file, file.name)
            print(
                f"\nThe report is {report}\nPlease attach it to an issue, also if all passed; it "
                "names paths and versions of this machine."
            )


if __name__ == "__main__":
    sys.exit(main())
