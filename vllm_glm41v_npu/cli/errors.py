# SPDX-License-Identifier: Apache-2.0
"""How a command ends that cannot go on: a sentence, and 2 for wrong arguments or 1 for the rest."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import NoReturn

from vllm_glm41v_npu.cli.printing import echo


def fail(message: str, code: int = 2) -> NoReturn:
    """End the command with `message` on standard error and exit code `code`."""
    echo(f"Error: {message}", err=True)
    sys.exit(code)


def check_installed() -> None:
    """End the command in a sentence where vLLM or its torch is missing; imports neither."""
    for package, name in (("vllm", "vLLM"), ("torch", "torch")):
        if find_spec(package) is None:
            fail(
                f"{name} is not installed in this Python, and nothing can be answered without it: "
                "install vLLM for your device the way README.md describes.",
                code=1,
            )
