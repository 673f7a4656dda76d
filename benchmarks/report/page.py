# SPDX-License-Identifier: Apache-2.0
"""The report as one page of HTML that loads nothing else, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from benchmarks.report.results import FLOOR, Machine, Missing, Result, Row, Spread
from benchmarks.report.templates import HTML, MARKDOWN

TITLE = "Benchmarks of vllm-glm41v-npu"
COLUMNS = ("", "", "unit", "ours", "peer", "theirs", "times better")


class Where(NamedTuple):
    """A machine with its versions, and the benchmarks that ran there."""

    machine: Machine
    versions: dict[str, str]
    names: list[str]


def html(results: Sequence[Result]) -> str:
    """Return the page: tables, plots, and cases that were not measured."""
    from benchmarks.report.plots import plots

    drawn = {
        result.name: [(title, Markup(svg)) for title, svg in plots(result)] for result in results
    }
    return _render(HTML, results, autoescape=True, plots=drawn)


def markdown(results: Sequence[Result]) -> str:
    """Return the same in Markdown, without plots."""
    return _render(MARKDOWN, results, autoescape=False)


def _render(template: str, results: Sequence[Result], autoescape: bool, **more: object) -> str:
    environment = Environment(
        autoescape=autoescape, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    return environment.from_string(template).render(
        title=TITLE,
        columns=COLUMNS,
        results=results,
        places=places(results),
        missing=list(missing(results)),
        cells=cells,
        **more,
    )


def places(results: Sequence[Result]) -> list[Where]:
    """Return each machine and set of versions once, whatever the time of day."""
    found: dict[tuple[object, ...], Where] = {}
    for result in results:
        machine = result.machine
        key = (machine.model_copy(update={"date": ""}), *result.versions.items())
        found.setdefault(key, Where(machine, result.versions, [])).names.append(result.name)
    return list(found.values())


def missing(results: Sequence[Result]) -> Iterator[tuple[str, Missing]]:
    """Return the cases that were not measured, with the benchmarks that lack them."""
    names: dict[Missing, list[str]] = {}
    for result in results:
        for one in result.missing:
            names.setdefault(one, []).append(result.name)
        if result.status != "measured":
            line = (result.why or "no reason was recorded").partition("; its last lines:")[0]
            names.setdefault(Missing(what="all of it", why=f"{result.status}: {line}"), []).append(
                result.name
            )
    return ((", ".join(those), one) for one, those in names.items())


def cells(row: Row) -> tuple[str, ...]:
    """Return a row as text, under COLUMNS."""
    gain = spread(row.gain)
    if row.gain and row.peer == FLOOR:
        gain = f"{row.gain.median:.0%} of it"
    load = None if row.load is None else f"{row.load_unit}: {row.load:g}"
    case = ", ".join(filter(None, (row.case, load)))
    return row.what, case, row.unit, spread(row.ours), row.peer or "-", spread(row.theirs), gain


def spread(values: Spread | None) -> str:
    """Return the median, and the range where there is more than one round."""
    if values is None:
        return "-"
    if values.min == values.max:
        return number(values.median)
    return f"{number(values.median)} ({number(values.min)} to {number(values.max)})"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
