# SPDX-License-Identifier: Apache-2.0
"""What continuous integration runs: .ci/run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LANES = ("test", "test-suffix", "test-page", "docs", "check-dist", "test-ascend")
MORE = ("test-slow", "accuracy", "test-in-tree")
"""Lanes that `.ci/run all` adds."""


@pytest.mark.parametrize(
    ("failing", "more"), [*((lane, ()) for lane in ("", *LANES)), *((lane, MORE) for lane in MORE)]
)
def test_ci_run_ends_with_pytests_closing_lines(tmp_path, failing, more):
    """Guards against a failure in a source tree without git, a result that is hard to find, an
    exit code that says otherwise, and a lane that is left out because another failed."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parent.parent)
    closing = [f"==== {n} failed, 2 passed in 63.10s (0:01:03) ====" for n in (1, 2, 3, 4)]
    make, chromium, nginx = (tmp_path / name for name in ("make", "chromium", "nginx"))
    make.write_text(
        f"""#!/bin/sh
case $1 in
test) echo 'E   {closing[0]}'; echo "{closing[0]}"; echo bye;;
test-page) echo "{closing[1]}";;
test-ascend) echo "{closing[2]}"; echo "{closing[3]}"; echo bye;;
esac
[ "$1" != "{failing}" ] || exit 2
"""
    )
    for program in (chromium, nginx):
        program.touch()  # or it would be installed
    for program in (make, chromium, nginx):
        program.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GIT_DIR": "none"}
    command = [tmp_path / ".ci" / "run", *(["all"] if more else [])]
    result = subprocess.run(command, env=environment, text=True, capture_output=True)
    assert result.returncode == (2 if failing else 0), result.stderr
    assert result.stdout.startswith("commit unknown, ")
    times, *last = result.stdout.splitlines()[-5:]
    assert last == closing
    codes = {lane: 2 if lane == failing else 0 for lane in (*LANES, *more)}
    lanes = ", ".join(rf"make {lane} \d+ s \(exit {code}\)" for lane, code in codes.items())
    assert re.fullmatch(rf"make env \d+ s, {lanes}, in all \d+ s", times), times
