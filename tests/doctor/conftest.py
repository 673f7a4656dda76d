# SPDX-License-Identifier: Apache-2.0
"""Machines and checkpoints to be examined."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.checkpoints import TINY
from tests.doctor.machines import (
    ASCEND_DEMANDS,
    FAKES,
    install,
    write_memory,
)
from vllm_glm41v_npu.doctor.context import Context

ROOT = Path(__file__).resolve().parents[2]
"""Of the package: a process whose imports are fakes still imports the one that is tested."""


@pytest.fixture(scope="module")
def fakes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fakes")
    for name, text in FAKES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(line.removeprefix(" " * 8) for line in text.splitlines()))
    return folder


@pytest.fixture
def machine(fakes, tmp_path):
    """Make the context of a machine whose vLLM runs on `device`, and whose files are in
    `tmp_path`; options are environment variables."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for program in ("lscpu", "g++"):
        (programs / program).symlink_to("/bin/true")
    write_memory(tmp_path, total=64, available=60)

    def make(
        model: Path | str | None = None,
        device: str = "cpu",
        chip: str = "A2",
        seconds: float = 30,
        **environ: str,
    ) -> Context:
        environ = {
            "PATH": str(programs),
            "PYTHONPATH": f"{fakes}:{ROOT}",
            "FAKE_DEVICE": device,
            "FAKE_CHIP": chip,
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(tmp_path / "hub"),
        } | environ
        return Context(None if model is None else str(model), environ, tmp_path, seconds)

    return make


@pytest.fixture
def ascend(monkeypatch, tmp_path) -> None:
    """An environment with vllm-ascend and what it demands."""
    for demand in ASCEND_DEMANDS:
        install(monkeypatch, tmp_path, *demand.split("=="))
    install(monkeypatch, tmp_path, "vllm-ascend", "0.23.0", *ASCEND_DEMANDS)


@pytest.fixture
def copy(tmp_path) -> Path:
    """The tiny checkpoint, to be broken."""
    return Path(shutil.copytree(TINY, tmp_path / "copy"))
