# SPDX-License-Identifier: Apache-2.0
"""`glm41v doctor`: checks of this machine, and advice where one fails."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_glm41v_npu.doctor import examine, printing
from vllm_glm41v_npu.doctor.context import Context
from vllm_glm41v_npu.doctor.finding import worst


def doctor(
    model: Annotated[
        str | None, typer.Option(help="Look at this checkpoint too: a folder or a hub name.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """Check this machine, what is installed, and a checkpoint; loads no weights, needs no NPU.

    Exits with 1 where something fails, and with 2 where an argument is wrong.
    """
    if model == "":
        raise typer.BadParameter("give a folder or a hub name", param_hint="--model")
    findings = []
    for finding in examine(Context(model)):
        findings.append(finding)
        if not as_json:
            typer.echo(printing.line(finding))
    typer.echo(printing.as_json(findings) if as_json else printing.verdict(findings))
    raise typer.Exit(int(worst(findings) == "fail"))
