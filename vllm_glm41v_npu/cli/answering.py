# SPDX-License-Identifier: Apache-2.0
"""Answers of `glm41v run` as they come: printed, written to the output, and summed up."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_glm41v_npu.cli.terminal import echo, fail, one_line
from vllm_glm41v_npu.offline.answers import (
    MINDIE_COLUMNS,
    Answer,
    AnswerFile,
    RunEnded,
    make_folder,
    write_mindie_csv,
)
from vllm_glm41v_npu.offline.tasks import Task

if TYPE_CHECKING:
    from vllm_glm41v_npu.offline.engine import Runner


def answer_all(
    runner: Runner,
    tasks: Sequence[Task],
    file: AnswerFile | None,
    quiet: bool,
    given: list[Answer] | None = None,
) -> list[Answer]:
    """Answer all tasks; return the answers without texts. End the command in a sentence if need be.

    Args:
        given: The list to fill and return; it is filled also where the command ends early.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    given = [] if given is None else given
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    started = time.perf_counter()
    try:
        with (
            Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress,
            closing(runner.run(tasks)) as answers,
        ):
            bar = progress.add_task("", total=len(tasks), rate="")
            for answer in answers:
                if file:
                    _write(file, answer, len(given))
                given.append(replace(answer, answer=None))  # of many texts, none stays in memory
                _print(answer, quiet)
                rate = len(given) / (time.perf_counter() - started)
                progress.update(bar, advance=1, rate=f"{rate:.2f}/s")
    except RunEnded as error:
        fail(f"{one_line(str(error))} {len(given)} were answered before.", error.code)
    except BrokenPipeError:  # nobody reads on, as after head; Typer ends the command without a word
        raise
    except OSError as error:
        fail(f"Answers cannot be printed ({error.strerror}). Give --output and --quiet.", code=1)
    except KeyboardInterrupt:
        further = " Go on by --resume." if file else ""
        fail(f"Interrupted after {len(given)} of {len(tasks)} requests.{further}", code=130)
    finally:
        if file:
            file.close()
    return given


def _write(file: AnswerFile, answer: Answer, before: int) -> None:
    try:
        file.write(answer)
    except OSError as error:
        fail(
            f"{file.path} cannot be written ({error.strerror}). {before} answers of this run are "
            "written. Make room for more, and go on by --resume.",
            code=1,
        )


def _print(answer: Answer, quiet: bool) -> None:
    """Print one answer or error; an error takes one line, an answer may take several."""
    if answer.error:
        echo(f"{one_line(answer.id)} failed: {one_line(answer.error)}", err=True)
    elif not quiet:
        echo(f"{one_line(answer.id)}: {answer.answer}")


def check_outputs(output: Path | None, table: Path | None, inputs: Sequence[Path]) -> None:
    """Refuse what would write over an input, or over a file that no earlier run wrote.

    Raises:
        ValueError: An output is an input or the other output, holds something else, or can have no
            folder.
        OSError: The table's folder cannot be made, or the table cannot be read.
    """
    places = {os.path.realpath(path) for path in inputs}
    for name, path in (("--output", output), ("--mindie-csv", table)):
        if path is None:
            continue
        if os.path.realpath(path) in places:
            raise ValueError(f"{name} is {path}, which the run reads or writes already.")
        places.add(os.path.realpath(path))
    if table is None:
        return
    make_folder(table)
    if table.exists():
        header = ",".join(MINDIE_COLUMNS).encode()
        is_table = table.is_file() and table.read_bytes()[: len(header)] in (header, b"")
        if not is_table:
            raise ValueError(
                f"--mindie-csv is {table}, which holds no table of an earlier run. Give another."
            )


def write_table(path: Path, given: Sequence[Answer], batch_size: int) -> None:
    """Write MindIE's table, or say in a sentence why not."""
    try:
        write_mindie_csv(path, given, batch_size)
    except OSError as error:
        echo(f"{path} cannot be written ({error.strerror}).", err=True)


def report(rows: Sequence[tuple[str, str]]) -> None:
    """Print a table on standard error."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    for row in rows:
        table.add_row(*row)
    Console(stderr=True).print(table)
