# SPDX-License-Identifier: Apache-2.0
"""The subject of one run of the doctor, and facts that several checks use, read once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vllm_glm41v_npu.backends import ON_ASCEND, ON_CPU, VISIBLE_NPUS, Backend
from vllm_glm41v_npu.checkpoint.folder import Checkpoint
from vllm_glm41v_npu.doctor import child
from vllm_glm41v_npu.doctor.finding import Finding
from vllm_glm41v_npu.doctor.locate import locate
from vllm_glm41v_npu.doctor.npu_smi import Chip, parse
from vllm_glm41v_npu.doctor.processes import Outcome, run
from vllm_glm41v_npu.planning import host_memory
from vllm_glm41v_npu.versions import Line, installed_versions, nearest_line


@dataclass(frozen=True)
class Context:
    """One run of the doctor.

    model: the checkpoint to look at, a folder or a hub name.
    environ: the environment that vLLM would be started with.
    root: where the system's files are.
    seconds: how long another program may take; importing vLLM from a cold disk takes a minute.
    """

    model: str | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    root: Path = Path("/")
    seconds: float = 180.0

    def program(self, name: str) -> str | None:
        """Return the path of a program on PATH, or None."""
        return shutil.which(name, path=self.environ.get("PATH", ""))

    def installed(self, distribution: str) -> str | None:
        """Return the installed version of a distribution, or None."""
        try:
            return version(distribution)
        except PackageNotFoundError:
            return None

    def loads(self, plugin: str) -> bool:
        """Return True where vLLM loads an installed plugin of this name."""
        # vLLM does not strip spaces either.
        names = self.environ.get("VLLM_PLUGINS")
        return names is None or plugin in names.split(",")

    @cached_property
    def expects_npu(self) -> bool:
        """True where vLLM would start on an NPU: vllm-ascend is installed and not left out."""
        return self.installed("vllm-ascend") is not None and self.loads("ascend")

    @cached_property
    def npu_smi(self) -> Outcome | None:
        """The outcome of `npu-smi info`; None where there is no npu-smi."""
        path = self.program("npu-smi")
        return None if path is None else run([path, "info"], self.environ, min(self.seconds, 30.0))

    @cached_property
    def chips(self) -> list[Chip]:
        outcome = self.npu_smi
        return parse(outcome.stdout) if outcome is not None and outcome.code == 0 else []

    @cached_property
    def visible_chips(self) -> list[Chip] | None:
        """The chips that vLLM would see; None where ASCEND_RT_VISIBLE_DEVICES makes no sense."""
        value = self.environ.get(VISIBLE_NPUS)
        if value is None:
            return self.chips
        ids = [part.strip() for part in value.split(",")]
        known = {str(index): chip for index, chip in enumerate(self.chips)}
        return [known[i] for i in ids] if len(known.keys() & set(ids)) == len(ids) else None

    @cached_property
    def answers(self) -> dict[str, Any]:
        """The answers of the other process (child.py)."""
        questions = {"platform": "", "model_class": ""}
        if self.checkpoint is not None and self.checkpoint.config is not None:
            # First, since reading a config is the likelier of the two to end well.
            questions = {"config": str(self.checkpoint.folder / "config.json"), **questions}
        return child.ask(questions, self.environ, self.seconds)

    @cached_property
    def backend(self) -> Backend | None:
        """The backend that vLLM chose; where it does not start, that of the chips."""
        found = self.answers["platform"].get("backend")
        if found:
            values: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value  # JSON has no tuples
                for key, value in found.items()
            }
            return Backend(**values)
        return self.chips[0].backend if self.chips else None

    @property
    def stack(self) -> str:
        """The stack of software that vLLM runs on: the backend's, or else of what is installed."""
        if self.backend is not None:
            return self.backend.stack
        return ON_ASCEND if self.expects_npu else ON_CPU

    @property
    def on_ascend(self) -> bool:
        return self.stack == ON_ASCEND

    @cached_property
    def versions(self) -> dict[str, str]:
        """The versions that make a line, by distribution."""
        return installed_versions(self.stack)

    @cached_property
    def line(self) -> Line:
        """The version line that is the nearest to what is installed."""
        return nearest_line(self.versions)

    @cached_property
    def memory(self) -> host_memory.Memory | None:
        """The host's memory; None where it cannot be read."""
        return host_memory.read(self.root)

    @cached_property
    def located(self) -> tuple[Path | None, Finding] | None:
        """The checkpoint's folder, and a finding about it; None where no checkpoint was named."""
        return None if self.model is None else locate(self.model, self.environ, self.seconds)

    @cached_property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint, if there is one to look at."""
        folder = self.located[0] if self.located is not None else None
        return None if folder is None else Checkpoint(folder)
