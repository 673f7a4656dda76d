# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.report FOLDER`: the results of benchmarks, as a page."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from vllm_glm41v_npu.cli.terminal import fail

NEEDED = ("jinja2", "matplotlib", "pydantic")


def report(
    folder: Annotated[Path, typer.Argument(help="Where `python -m benchmarks.run` wrote to.")],
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    markdown: Annotated[
        Path | None, typer.Option(help="Write it as Markdown too, without plots.")
    ] = None,
) -> None:
    """Make one page of the results of benchmarks: tables, plots, and cases that were not measured.

    Exits with 2 where the folder or a file in it is something else, and with 1 where a package is
    missing or the page cannot be written.
    """
    if lacking := [name for name in NEEDED if find_spec(name) is None]:
        fail(
            f"{', '.join(lacking)} is not installed in this Python, and the report is made with "
            "it: run `make env`, and .venv/bin/python -m benchmarks.report.",
            code=1,
        )
    from benchmarks.report import page
    from benchmarks.report.results import ResultsError, read

    try:
        results = read(folder)
    except ResultsError as error:
        fail(str(error))
    try:
        output.write_text(page.html(results), encoding="utf-8")
        if markdown:
            markdown.write_text(page.markdown(results), encoding="utf-8")
    except OSError as error:
        fail(f"{error.filename} cannot be written ({error.strerror}): choose another place.", 1)
    typer.echo(f"{len(results)} results: {output}{f' and {markdown}' if markdown else ''}")


app = typer.Typer(add_completion=False)
app.command()(report)

if __name__ == "__main__":
    app(prog_name="python -m benchmarks.report")
