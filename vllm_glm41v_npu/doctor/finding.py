# SPDX-License-Identifier: Apache-2.0
"""Findings: the results of checks, and helpers to write them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from vllm_glm41v_npu.checkpoint.problem import Problem

Status = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    name: the subject of the check.
    status: "skip" where it does not apply to this machine, or cannot be told.
    found: the facts.
    advice: what to do; empty where there is nothing to do.
    """

    name: str
    status: Status
    found: str
    advice: str = ""


def ok(name: str, found: str) -> Finding:
    return Finding(name, "ok", found)


def skip(name: str, found: str) -> Finding:
    return Finding(name, "skip", found)


def warn(name: str, found: str, advice: str) -> Finding:
    return Finding(name, "warn", found, advice)


def fail(name: str, found: str, advice: str) -> Finding:
    return Finding(name, "fail", found, advice)


def of_problem(problem: Problem) -> Finding:
    """Return a failure for a problem that is refused at the start, else a warning."""
    status = fail if problem.fatal else warn
    return status(problem.name, problem.found, problem.advice)


def worst(findings: Iterable[Finding]) -> Status:
    """Return the worst status of all: "fail", "warn" or "ok"."""
    seen = {finding.status for finding in findings}
    return "fail" if "fail" in seen else "warn" if "warn" in seen else "ok"


def shortened(items: Iterable[str], most: int = 3) -> str:
    """Return the first few of `items` in one line, and the number of the others."""
    listed = list(items)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def size(number: float) -> str:
    """Return a number of bytes in words for people."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number / 1e3:.1f} kB"
