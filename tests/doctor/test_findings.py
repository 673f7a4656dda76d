# SPDX-License-Identifier: Apache-2.0
"""The verdict over all findings, and programs that hang: without a machine to look at."""

from __future__ import annotations

import os
import time
from itertools import permutations
from pathlib import Path

import pytest

from vllm_glm41v_npu.doctor.finding import fail, ok, skip, warn, worst
from vllm_glm41v_npu.doctor.processes import run

FINDINGS = (ok("a", ""), skip("b", ""), warn("c", "", ""), fail("d", "", ""))


@pytest.mark.parametrize(("count", "expected"), [(0, "ok"), (2, "ok"), (3, "warn"), (4, "fail")])
def test_the_worst_counts(count: int, expected: str) -> None:
    """Guards a verdict that a warning, or the order of findings, makes better than it is."""
    for findings in permutations(FINDINGS[:count]):
        assert worst(findings) == expected


def _runs(process: int) -> bool:
    """Whether a process is there, and not only its entry, which nobody has asked for yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_program_that_hangs_leaves_nothing() -> None:
    """Guards what such a program has started, which would keep a device or a port."""
    outcome = run(["sh", "-c", "sleep 30 & echo $!; wait"], os.environ, 0.5)
    assert outcome.code is None and "no answer within 0.5 s" in outcome.trouble
    child, end = int(outcome.stdout), time.monotonic() + 10
    while _runs(child) and time.monotonic() < end:
        time.sleep(0.01)
    assert not _runs(child)
