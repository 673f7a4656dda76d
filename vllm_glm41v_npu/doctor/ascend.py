# SPDX-License-Identifier: Apache-2.0
"""Checks of the NPU's side of the host: chips, driver, CANN and its libraries."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vllm_glm41v_npu.backends import CHIPS, VISIBLE_NPUS
from vllm_glm41v_npu.doctor.context import Context
from vllm_glm41v_npu.doctor.finding import Finding, Status, fail, ok, size, skip, warn

INSTALLED = Path("usr/local/Ascend")
CANN_SCRIPTS = ("cann/set_env.sh", "ascend-toolkit/set_env.sh")
NNAL_SCRIPTS = ("nnal/atb/set_env.sh",)
BUSY = 0.15  # an idle chip has 3 to 10 percent of its memory in use

GIVE_DEVICES = (
    "In a container, give it /dev/davinci0 and further, /dev/davinci_manager, /dev/devmm_svm and "
    "/dev/hisi_hdc. To run on the CPU, leave ascend out of VLLM_PLUGINS."
)
FIX_DRIVER = "Fix the driver first: nothing runs on the NPU while `npu-smi info` fails."


def npu(context: Context) -> Iterator[Finding]:
    """Check the chips: that there are some, healthy and idle, that this package runs on."""
    outcome, chips = context.npu_smi, context.chips
    if outcome is not None and outcome.trouble:
        yield _absent(context, "NPU", f"npu-smi info fails: {outcome.trouble}", FIX_DRIVER)
        return
    if not chips:
        nodes = sorted((context.root / "dev").glob("davinci[0-9]*"))
        if nodes:
            advice = "Mount npu-smi and the driver's libraries into the container to see them."
            yield warn("NPU", f"{len(nodes)} device node(s), but npu-smi lists none", advice)
        else:
            yield _absent(context, "NPU", "none found", GIVE_DEVICES)
        return
    for name, count in Counter(chip.name for chip in chips).items():
        yield _kind(context, name, count)
    for index, chip in enumerate(chips):
        if chip.health != "OK":
            ask = f"Ask `npu-smi info -t health -i {chip.card}`"
            advice = f"{ask}, and leave it out with {VISIBLE_NPUS}."
            yield warn(f"NPU {index}", f"health is {chip.health}", advice)
        if chip.used > BUSY * chip.total:
            found = f"{size(chip.used)} of {size(chip.total)} are in use"
            advice = f"End what uses it (npu-smi lists it), or leave it out with {VISIBLE_NPUS}."
            yield warn(f"NPU {index}", found, advice)


def _kind(context: Context, name: str, count: int) -> Finding:
    chip = next(chip for chip in context.chips if chip.name == name)
    found = f"{count} x {name}, {size(chip.total)} each"
    if chip.backend is None:
        known = " or ".join(str(row.npu_smi_name) for row in CHIPS)
        advice = f"This package runs on chips whose names begin with {known}."
        return fail("NPU", f"{found}, which this package does not know", advice)
    found = f"{found} ({chip.backend.name})"
    backend = context.backend
    if not context.on_ascend:
        install = f"install {_vllm_ascend(context)}"
        advice = f"To use it, {install}, and do not leave it out with VLLM_PLUGINS."
        return warn("NPU", f"{found}, not used", advice)
    if backend is not None and backend.name != chip.backend.name:
        advice = "Install the vllm-ascend that was built for this chip: its images carry it."
        return fail("NPU", f"{found}, but vllm-ascend is built for {backend.name}", advice)
    return ok("NPU", found)


def visible(context: Context) -> Iterator[Finding]:
    """Check that ASCEND_RT_VISIBLE_DEVICES names chips that are there."""
    value, last = context.environ.get(VISIBLE_NPUS), len(context.chips) - 1
    if value is None or not context.chips:
        return
    if context.visible_chips is None:
        advice = f"Give different numbers from 0 to {last}, separated by commas, or unset it."
        yield fail("visible NPUs", f"{VISIBLE_NPUS}={value!r}", advice)
    else:
        yield ok("visible NPUs", f"{VISIBLE_NPUS}={value}")


def driver(context: Context) -> Iterator[Finding]:
    """Check that the driver is there, and name its version."""
    path = context.root / INSTALLED / "driver/version.info"
    number = _value(path, "package_version") or _value(path, "Version")
    if number is not None:
        yield ok("NPU driver", number)
    elif context.chips:
        advice = f"In a container, mount /{INSTALLED}/driver/version.info."
        yield warn("NPU driver", "its version is not there", advice)
    else:
        yield skip("NPU driver", "not here")


def cann(context: Context) -> Iterator[Finding]:
    """Check that CANN is there, sourced in this shell, and of vllm-ascend's version."""
    wanted = context.line.cann
    home = context.environ.get("ASCEND_TOOLKIT_HOME") or context.environ.get("ASCEND_HOME_PATH")
    if not home:
        advice = f"Install CANN {wanted}, toolkit and kernels, or use vllm-ascend's image."
        yield _not_sourced(context, "CANN", CANN_SCRIPTS, advice)
        return
    if not Path(home).is_dir():
        advice = "Source the set_env.sh of a CANN that is there."
        yield fail("CANN", f"ASCEND_TOOLKIT_HOME or ASCEND_HOME_PATH is {home}: no folder", advice)
        return
    number = _cann_version(Path(home))
    if number is None:
        advice = f"{_vllm_ascend(context)} is built with CANN {wanted}: check that it is that."
        yield warn("CANN", f"{home} does not say its version", advice)
    elif number == wanted or number.startswith(f"{wanted}."):
        yield ok("CANN", f"{number} in {home}")
    else:
        advice = f"{_vllm_ascend(context)} is built with CANN {wanted}: install that one."
        yield warn("CANN", f"{number} in {home}", advice)


def _vllm_ascend(context: Context) -> str:
    return f"vllm-ascend {context.line.vllm_ascend}"


def _cann_version(home: Path) -> str | None:
    for path in sorted(home.glob("*-linux/ascend_toolkit_install.info")):
        if number := _value(path, "version"):
            return number
    config = home / "version.cfg"
    # toolkit_running_version=[7.6.0.1.220:8.0.0]
    number = _value(config, "toolkit_running_version") or _value(config, "version")
    return number.strip("[]").rpartition(":")[2] if number else None


def atb(context: Context) -> Iterator[Finding]:
    """Check that the transformer library of nnal is there, sourced, and of CANN's version."""
    wanted = context.line.cann
    home = context.environ.get("ATB_HOME_PATH")
    if not home:
        advice = f"Install nnal {wanted}: vllm-ascend's operators are in it."
        yield _not_sourced(context, "ATB", NNAL_SCRIPTS, advice)
        return
    number = _value(Path(home) / "../../version.info", "Ascend-cann-atb")
    if not Path(home).is_dir():
        advice = "Source the set_env.sh of an nnal that is there."
        yield fail("ATB", f"ATB_HOME_PATH is {home}: no folder", advice)
    elif number is not None and number.split(".")[:2] != wanted.split("."):
        yield warn("ATB", f"{number} in {home}", f"Install nnal {wanted}, CANN's version.")
    else:
        yield ok("ATB", f"{number or 'of unknown version'} in {home}")


def _not_sourced(context: Context, name: str, scripts: tuple[str, ...], install: str) -> Finding:
    """Return the finding where the environment does not name the library's folder."""
    for script in scripts:
        path = context.root / INSTALLED / script
        if path.exists():
            found = f"installed, but {path} was not sourced in this shell"
            return _absent(context, name, found, f"Run `source {path}` before vLLM.", else_="warn")
    return _absent(context, name, "not here", install)


def _absent(
    context: Context, name: str, found: str, advice: str, else_: Status = "skip"
) -> Finding:
    """Return a failure where vLLM would start on an NPU; elsewhere a finding of status `else_`."""
    if context.expects_npu:
        return fail(name, f"{found}, and vllm-ascend is installed", advice)
    return Finding(name, else_, found, "" if else_ == "skip" else advice)


def _value(path: Path, key: str) -> str | None:
    """Return the value of a key in a file of `key=value` or `key : value` lines, or None."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return None
    match = re.search(rf"^\s*{re.escape(key)}\s*[=:]\s*(.*\S)", text, re.MULTILINE)
    return match[1] if match else None
