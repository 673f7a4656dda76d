# SPDX-License-Identifier: Apache-2.0
"""`glm41v quantize`: a float checkpoint to msModelSlim's W8A8, W8A8_DYNAMIC or W8A8S."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_glm41v_npu.cli.terminal import fail

if TYPE_CHECKING:
    from rich.table import Table

    from vllm_glm41v_npu.quant.quantizer import Report, Request


def quantize(
    source: Annotated[Path, typer.Argument(help="The folder of the float checkpoint.")],
    output: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
    type: Annotated[str, typer.Option(help="W8A8, W8A8_DYNAMIC or W8A8S.")],
    dtype: Annotated[
        str | None, typer.Option(help="float16 or bfloat16; the source's if left out.")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="A folder of pictures and videos, or a JSONL; a built-in set if not."),
    ] = None,
    samples: Annotated[int, typer.Option(help="The most conversations to calibrate on.")] = 32,
    estimator: Annotated[
        str, typer.Option(help="Of the static ranges: minmax, percentile or mse.")
    ] = "minmax",
    alpha: Annotated[
        float | None,
        typer.Option(help="Smoothing, 0 to 1; the best for each norm is found if left out."),
    ] = None,
    fraction: Annotated[float, typer.Option(help="W8A8S: outliers, as a part of a row.")] = 0.01,
    sigma: Annotated[
        float, typer.Option(help="W8A8S: beyond how many standard deviations all are outliers.")
    ] = 3.0,
    quantize: Annotated[
        list[str] | None,
        typer.Option(help="Quantize these too, such as '*.mlp.down_proj'. Repeatable."),
    ] = None,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(help="Keep these float, such as '*.layers.0.*'. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the built-in set and the choice of tokens.")] = 0,
) -> None:
    """Quantize a checkpoint, with one layer in memory at a time; needs no NPU.

    Exits with 2 where an argument or a file cannot be used. OUTPUT is there whole, or not at all.
    """
    from rich.console import Console

    from vllm_glm41v_npu.quant.quantizer import QuantizerError, Request, Settings

    settings = Settings(estimator=estimator, alpha=alpha, fraction=fraction, sigma=sigma)
    request = Request(
        source,
        output,
        type,
        dtype,
        calibration,
        samples,
        quantize or (),
        keep_float or (),
        settings,
        seed,
    )
    # As an interrupt from the keyboard: what was written so far is removed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        report = _run(request)
    except QuantizerError as error:
        fail(str(error))
    for name in report.unreadable:
        typer.echo(f"Warning: not used, because it cannot be read: {name}", err=True)
    Console().print(_table(report))
    typer.echo(
        f"{output}: {report.type} for {report.dtype}, {len(report.layers)} layers quantized; "
        f"calibrated on {report.samples} conversations of {report.tokens:,} tokens, "
        f"{len(report.unreadable)} files unreadable."
    )


def _run(request: Request) -> Report:
    """Quantize, with a bar on the terminal."""
    from rich import progress
    from rich.console import Console

    from vllm_glm41v_npu.quant.quantizer import quantize

    columns = (
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.description}"),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("calibration set", total=None)

        def show(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=name)

        return quantize(request, show)


def _table(report: Report) -> Table:
    """Return a table of one row a layer, with outliers where the type has some."""
    from rich import box
    from rich.table import Table

    from vllm_glm41v_npu.checkpoint.names import NEWER, OLDER

    table = Table("layer", "error", "input", "clipped", "alpha", box=box.SIMPLE)
    sparse = report.type == "W8A8S"
    if sparse:
        table.add_column("outliers")
    for layer in report.layers:
        row = [
            layer.name.removeprefix(NEWER.text).removeprefix(OLDER.text),
            f"{layer.error:.2%}",
            f"{layer.low:.3g} .. {layer.high:.3g}",
            f"{layer.clipped:.3%}",
            "-" if layer.alpha is None else f"{layer.alpha:g}",
        ]
        table.add_row(*row, *([f"{layer.outliers:.2%}"] if sparse else []))
    return table
