# SPDX-License-Identifier: Apache-2.0
"""Chips, driver and CANN."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.checkpoints import TINY
from tests.doctor.machines import (
    A2,
    A3,
    DUO,
    say,
    summary,
    write_cann,
    write_program,
    write_table,
)
from vllm_glm41v_npu import doctor
from vllm_glm41v_npu.backends import ATLAS_310P, ATLAS_A2
from vllm_glm41v_npu.doctor import npu_smi
from vllm_glm41v_npu.doctor.finding import Finding


def test_tables_of_npu_smi():
    """Guards against another column being read for the memory, and a process for a chip."""
    mib = npu_smi.MIB
    assert npu_smi.parse(DUO) == [
        npu_smi.Chip(2, "310P3", "OK", 1529 * mib, 44280 * mib),
        npu_smi.Chip(2, "310P3", "OK", 1412 * mib, 43693 * mib),
    ]
    assert npu_smi.parse(A2) == [
        npu_smi.Chip(4, "910B3", "OK", 3359 * mib, 65536 * mib),
        npu_smi.Chip(5, "910B3", "Alarm", 41697 * mib, 65536 * mib),
    ]
    assert [chip.backend for chip in npu_smi.parse(DUO + A2 + A3)] == [
        *[ATLAS_310P] * 2,
        *[ATLAS_A2] * 2,
        *[None] * 2,
    ]


def test_duo_card(ascend, machine):
    """Guards against bfloat16 being advised on a 310P, and against one chip seen for two."""
    context = machine(TINY, device="npu", chip="_310P")
    write_table(context, DUO)
    assert say(context, "NPU") == Finding("NPU", "ok", "2 x 310P3, 46.4 GB each (Atlas 310P)")
    assert say(context, "dtype").found.startswith("float16 by --dtype auto on Atlas 310P")


TWO_KINDS = A2.replace("5     910B3 ", "5     910B4 ").replace("41697/ 65536", "3100 / 32768")


def test_chips_that_differ(ascend, machine):
    """Guards the smaller chip, which decides, and against one kind that hides the other."""
    context = machine(device="npu")
    write_table(context, TWO_KINDS)
    found = [f.found for f in doctor.examine(context) if f.name == "NPU"]
    assert found == [
        "1 x 910B3, 68.7 GB each (Atlas A2)",
        "1 x 910B4, 34.4 GB each (Atlas A2)",
    ]
    mixed = machine(device="npu")
    write_table(mixed, A2 + DUO)
    findings = [f for f in doctor.examine(mixed) if f.name == "NPU"]
    assert [f.status for f in findings] == ["ok", "fail"]
    assert findings[1].found.startswith("2 x 310P3, 46.4 GB each (Atlas 310P), but vllm-ascend")


def test_sick_and_busy_chips(ascend, machine):
    """Guards against an alarm, or another user's process, found out when vLLM starts."""
    context = machine(device="npu")
    write_table(context, A2)
    findings = [f for f in doctor.examine(context) if f.name in ("NPU", "NPU 0", "NPU 1")]
    assert [(f.name, f.status) for f in findings] == [
        ("NPU", "ok"),
        ("NPU 1", "warn"),
        ("NPU 1", "warn"),
    ]
    assert "health is Alarm" in findings[1].found
    assert "43.7 GB of 68.7 GB are in use" in findings[2].found


@pytest.mark.parametrize(
    ("table", "said"),
    [(A3, "does not know"), (DUO, "but vllm-ascend is built for Atlas A2")],
)
def test_chip_that_does_not_fit(ascend, machine, table, said):
    """Guards against PyPI's vllm-ascend, built for A2, on a 310P, and against a chip of no kind."""
    context = machine(device="npu")
    write_table(context, table)
    finding = say(context, "NPU")
    assert finding.status == "fail"
    assert said in finding.found


@pytest.mark.parametrize(
    ("value", "status"), [("0,1", "ok"), ("1", "ok"), ("2", "fail"), ("0,0", "fail"), ("", "fail")]
)
def test_visible_devices(ascend, machine, value, status):
    """Guards against a device number that is not there, which torch-npu answers with a crash."""
    context = machine(device="npu", ASCEND_RT_VISIBLE_DEVICES=value)
    write_table(context, DUO.replace("310P3", "910B3"))
    assert say(context, "visible NPUs").status == status


def test_npu_without_vllm_ascend(machine):
    """Guards against an NPU that stands idle without a word."""
    context = machine()
    write_table(context, DUO)
    finding = say(context, "NPU")
    assert finding.status == "warn"
    assert "not used" in finding.found


def test_vllm_ascend_without_npu(ascend, machine):
    """Guards against a container without devices, found out in a traceback of torch-npu."""
    context = machine(device="npu")
    found = {finding.name: finding for finding in doctor.examine(context)}
    assert {found[name].status for name in ("NPU", "CANN", "ATB")} == {"fail"}
    assert "/dev/davinci_manager" in found["NPU"].advice
    on_purpose = summary(machine(VLLM_PLUGINS="glm41v_npu"))
    assert {on_purpose[name] for name in ("NPU", "CANN", "ATB")} == {"skip"}
    assert on_purpose["plugin ascend"] == "warn"


def test_driver_that_does_not_answer(ascend, machine, tmp_path):
    """Guards against npu-smi's own failure, or its hanging, being taken for no NPU."""
    context = machine(device="npu")
    write_program(context, "npu-smi", "echo dcmi module initialize failed. ret is -8005; exit 1")
    finding = say(context, "NPU")
    assert finding.status == "fail"
    assert "exit code 1: dcmi module initialize failed. ret is -8005" in finding.found
    context = machine(device="npu", seconds=1)
    write_program(context, "npu-smi", f"{shutil.which('sleep')} 100")
    assert "no answer within 1 s" in say(context, "NPU").found
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "davinci0").touch()
    (Path(context.environ["PATH"]) / "npu-smi").unlink()
    assert say(machine(device="npu"), "NPU").status == "warn"


@pytest.mark.parametrize(("version", "status"), [("9.1.0", "ok"), ("8.3.RC1", "warn")])
def test_cann(ascend, machine, tmp_path, version, status):
    """Guards against a CANN of another release, and against its version not being found."""
    found = {
        finding.name: finding
        for finding in doctor.examine(machine(device="npu", **write_cann(tmp_path, version)))
    }
    assert (found["CANN"].status, found["ATB"].status) == (status, status)
    assert found["CANN"].found.startswith(f"{version} in ")
    assert found["NPU driver"].found == "25.3.rc1"


def test_older_cann_says_its_version_elsewhere(ascend, machine, tmp_path):
    """Guards against version.cfg, which older releases have, being misread."""
    (tmp_path / "version.cfg").write_text(
        "# version: 1.0\nruntime_running_version=[7.6.0.1.220:8.0.0]\n"
        "toolkit_running_version=[7.6.0.1.220:8.0.1]\n"
    )
    finding = say(machine(device="npu", ASCEND_HOME_PATH=str(tmp_path)), "CANN")
    assert finding.found == f"8.0.1 in {tmp_path}"


def test_cann_that_was_not_sourced(ascend, machine, tmp_path):
    """Guards against the commonest mistake ending in a missing library."""
    write_cann(tmp_path, "9.1.0")
    context = machine(device="npu")
    for name, script in (("CANN", "cann/set_env.sh"), ("ATB", "nnal/atb/set_env.sh")):
        finding = say(context, name)
        assert finding.status == "fail"
        assert finding.advice == f"Run `source {tmp_path}/usr/local/Ascend/{script}` before vLLM."
    gone = machine(device="npu", ASCEND_TOOLKIT_HOME=str(tmp_path / "gone"))
    assert "no folder" in say(gone, "CANN").found
