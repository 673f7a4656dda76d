# SPDX-License-Identifier: Apache-2.0
"""`make test-npu` and its report, with a stand-in for the device, the doctor and pytest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools import npu_report

ROOT = Path(__file__).resolve().parent.parent


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def say_device(monkeypatch, name="Ascend910B3", count=2, emulated=False) -> None:
    answer = json.dumps([name, count, emulated])
    monkeypatch.setattr(npu_report, "PROBE", python(f"print('Warning\\n' + '{answer}')"))


@pytest.mark.parametrize("status", [0, 1])
def test_report(tmp_path, monkeypatch, capsys, status):
    """Guards against a report that lacks a part, or that only a run without failures writes."""
    say_device(monkeypatch)
    monkeypatch.setenv("GLM41V_MODEL", "a folder")
    doctor = "import sys; print(sys.argv[1:]); print('a warning', file=sys.stderr); sys.exit(1)"
    monkeypatch.setattr(npu_report, "DOCTOR", python(doctor))
    tests = (
        "import sys; option, *paths = sys.argv[1:]; print('5 passed', *paths); "
        f"open(option.split('=')[1], 'w').write('<x/>'); sys.exit({status})"
    )
    monkeypatch.setattr(npu_report, "PYTEST", python(tests))
    assert npu_report.main(tmp_path) == status
    (report,) = tmp_path.iterdir()
    assert report.match("npu-report-A2-20??-??-??-??????.zip")
    archive = zipfile.ZipFile(report)
    assert sorted(archive.namelist()) == ["doctor.json", "pytest.xml", "run.log"]
    assert archive.read("doctor.json") == b"['--model', 'a folder']\n"
    assert archive.read("pytest.xml") == b"<x/>"
    log = archive.read("run.log").decode()
    assert "2 x Ascend910B3\n" in log
    assert log.endswith(f"\n\na warning\n5 passed {' '.join(npu_report.TESTS)}\n")
    shown = capsys.readouterr().out
    assert all(line in shown for line in log.splitlines())
    assert str(report) in shown.splitlines()[-2]


def test_report_of_what_stopped(tmp_path, monkeypatch):
    """Guards against no report where it is needed most: commands that cannot even start."""
    say_device(monkeypatch)
    monkeypatch.setattr(npu_report, "DOCTOR", [str(tmp_path / "none")])
    with pytest.raises(FileNotFoundError):
        npu_report.main(tmp_path)
    (report,) = tmp_path.iterdir()
    assert "2 x Ascend910B3" in zipfile.ZipFile(report).read("run.log").decode()


def test_orphans_do_not_hold_the_report(tmp_path):
    """Guards against waiting for an engine that outlives the tests that started it."""
    command = ["sh", "-c", "sleep 30 & echo $!; exit 3"]
    log = tmp_path / "log"
    with log.open("a") as out:
        assert npu_report.run(command, out, log) == 3
    subprocess.run(["kill", log.read_text().strip()], check=True)


@pytest.mark.parametrize(
    ("name", "emulated", "named", "chip"),
    [
        ("Ascend910B3", False, None, "A2"),
        ("Ascend310P3", False, None, "310P"),
        ("Ascend910 93/x", False, None, "Ascend910-93-x"),
        ("Ascend910B3", False, "my card", "my-card"),
        ("Ascend310P3", True, None, "emulated-310P"),
    ],
)
def test_chip_of_the_report(monkeypatch, name, emulated, named, chip):
    """Guards against a name that is no file's, and an emulated chip taken for a real one."""
    monkeypatch.delenv("NPU_CHIP", raising=False)
    if named:
        monkeypatch.setenv("NPU_CHIP", named)
    assert npu_report.Device(name, 1, emulated).chip == chip


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        (python("print('[\"\", 0, false]')"), "sees no NPU in .*python: give"),
        (python("import torch_npu_is_not_here"), r"\(ModuleNotFoundError: No module named"),
    ],
)
def test_no_device_is_refused_in_a_sentence(tmp_path, monkeypatch, probe, said):
    """Guards against a report of a hundred failures from a machine without an NPU."""
    monkeypatch.setattr(npu_report, "PROBE", probe)
    with pytest.raises(SystemExit, match=said) as refused:
        npu_report.main(tmp_path)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_this_machine_is_refused():
    """Guards against a Makefile that asks another Python, or builds an environment first."""
    options = [f"PYTHON_NPU={sys.executable}", "PYTHON=false"]
    result = subprocess.run(
        ["make", "test-npu", *options], cwd=ROOT, text=True, capture_output=True
    )
    assert result.returncode != 0
    assert result.stderr.startswith(f"torch_npu sees no NPU in {sys.executable} (ModuleNotFound")


def test_collection_needs_no_training_tools():
    """Guards against a lane that does not start where only vllm-ascend and pytest are."""
    hidden = "sklearn", "joblib", "narwhals", "mypy", "ruff"
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({hidden!r})); import pytest; "
        f"sys.exit(pytest.main(['--collect-only', '-q', '-m', 'npu', *{npu_report.TESTS!r}]))"
    )
    result = subprocess.run(
        python(code), cwd=ROOT, env=os.environ.copy(), text=True, capture_output=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "tests/end_to_end/" in result.stdout
