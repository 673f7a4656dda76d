# SPDX-License-Identifier: Apache-2.0
"""The `glm41v` command: one file a subcommand."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_glm41v_npu import __version__
from vllm_glm41v_npu.cli.ask import ask
from vllm_glm41v_npu.cli.compress import compress
from vllm_glm41v_npu.cli.doctor import doctor
from vllm_glm41v_npu.cli.page import page
from vllm_glm41v_npu.cli.plan import plan
from vllm_glm41v_npu.cli.quantize import quantize
from vllm_glm41v_npu.cli.report import UNREAD, report
from vllm_glm41v_npu.cli.run import run
from vllm_glm41v_npu.cli.serve import serve

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(ask)
app.command()(compress)
app.command()(doctor)
app.command()(plan)
app.command()(page)
app.command()(quantize)
app.command(hidden=True, context_settings=UNREAD)(report)
app.command()(run)
app.command()(serve)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vllm-glm41v-npu {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """GLM-4.1V-9B-Thinking for vLLM, on Ascend NPUs and on any CPU."""
