# SPDX-License-Identifier: Apache-2.0
"""Printing of findings, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable

import typer

from vllm_glm41v_npu import __version__
from vllm_glm41v_npu.doctor.finding import Finding, Status, worst

NAME_WIDTH = 15
COLOURS = {"ok": "green", "warn": "yellow", "fail": "red", "skip": "bright_black"}
VERDICTS: dict[Status, str] = {
    "ok": "All is well.",
    "warn": "Nothing fails, but see the warnings.",
    "fail": "It does not work yet: do what stands after the arrows, from the top.",
}


def line(finding: Finding) -> str:
    """Return one finding, its advice in a line below; typer drops the colour in a pipe."""
    status = typer.style(f"{finding.status:5}", fg=COLOURS[finding.status])
    text = f"{status} {finding.name:{NAME_WIDTH}} {finding.found}"
    indent = " " * (6 + NAME_WIDTH)
    return f"{text}\n{indent} -> {finding.advice}" if finding.advice else text


def verdict(findings: Iterable[Finding]) -> str:
    return VERDICTS[worst(findings)]


def as_json(findings: list[Finding]) -> str:
    """Return {"version", "status", "findings": [{"name", "status", "found", "advice"}]}."""
    listed = [vars(finding) for finding in findings]
    document = {"version": __version__, "status": worst(findings), "findings": listed}
    return json.dumps(document, indent=2, ensure_ascii=False)
