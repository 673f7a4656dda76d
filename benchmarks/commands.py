# SPDX-License-Identifier: Apache-2.0
"""vLLM's own `vllm bench` tools, run for one side."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.results import ROOT
from benchmarks.sides import variables

QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1"}


def vllm_bench(
    side: str, tool: str, *options: str, output: str, more: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The JSON that `vllm bench` writes, in a process with the plugins of this side.

    Args:
        side: See `sides`.
        tool: Such as startup.
        options: The tool's, but for where it writes to.
        output: The name of that option.
        more: Variables of the process.

    Raises:
        SystemExit: It failed; the message has its last lines.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [str(Path(sys.executable).parent / "vllm"), "bench", tool, *options]
        done = subprocess.run(
            [*command, output, str(result)],
            env={**variables(side), **QUIET, **(more or {})},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode or not result.is_file():
            said = f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            raise SystemExit(f"vllm bench {tool} failed on the {side} side:\n{said}")
        return json.loads(result.read_text())
