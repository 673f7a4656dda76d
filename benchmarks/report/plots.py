# SPDX-License-Identifier: Apache-2.0
"""Plots of results, each as an SVG element for a page."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.report.results import FLOOR, Result, Row, Spread

OURS = "#2563eb"
OTHERS = ("#d97706", "#059669", "#9333ea", "#dc2626", "#475569")
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.alpha": 0.3,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "glm41v",  # the same results make the same page
    "text.parse_math": False,
}
WIDTH, ROW_HEIGHT = 8.5, 0.26  # inches


def plots(result: Result) -> Iterator[tuple[str, str]]:
    """Yield a title and an SVG element for each plot that a result has enough rows for."""
    compared = [row for row in result.rows if row.gain and row.type is None and row.load is None]
    if peers := [row for row in compared if row.peer != FLOOR]:
        yield "How many times better than the peer", gains(peers)
    if floors := [row for row in compared if row.peer == FLOOR]:
        yield "Share of the floor that is reached", gains(floors, share=True)
    loaded = sorted((row for row in result.rows if row.load is not None), key=_subject)
    for (what, unit), rows in groupby(loaded, key=_subject):
        yield f"{what} against load", against_load(list(rows), unit)
    if typed := [row for row in result.rows if row.type is not None and row.ours]:
        for unit, rows in groupby(sorted(typed, key=lambda row: row.unit), lambda row: row.unit):
            yield "By type of quantization", by_type(list(rows), unit)


def gains(rows: Sequence[Row], share: bool = False) -> str:
    """Draw a dot and its range for each row, on a logarithmic scale around 1."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _empty(0.9 + ROW_HEIGHT * len(rows))
        colours = dict(zip(dict.fromkeys(row.peer for row in rows), _cycle(), strict=False))
        for place, row in enumerate(rows):
            assert row.gain is not None
            _dot(axes, row.gain, place, colours[row.peer])
        for peer, colour in colours.items():
            axes.plot([], [], "o", color=colour, label="floor / ours" if share else f"to {peer}")
        axes.axvline(1, color="black", linewidth=0.8)
        if not share:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:.0%}" if share else f"{value:g}x")
        )
        axes.set_xlim(*_limits(rows, share))
        axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)  # the first on top
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
        return _svg(figure)


def against_load(rows: Sequence[Row], unit: str) -> str:
    """Draw a line with its range for each case of either side."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _empty(3.0)
        cases = dict.fromkeys(row.case for row in rows)
        for number, case in enumerate(cases):
            chosen = [row for row in rows if row.case == case]
            style = ("-", "--", ":", "-.")[number % 4]
            _line(axes, [(row.load, row.ours) for row in chosen], OURS, style, f"ours {case}")
            for peer, colour in zip(_peers(chosen), _cycle(), strict=False):
                theirs = [(row.load, row.theirs) for row in chosen if row.peer == peer]
                _line(axes, theirs, colour, style, f"{peer} {case}")
        axes.set_xlabel(rows[0].load_unit or "")
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        axes.set_xticks(sorted({row.load for row in rows if row.load is not None}))
        axes.legend(frameon=False)
        return _svg(figure)


def by_type(rows: Sequence[Row], unit: str) -> str:
    """Draw bars for each type, one for each set."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _empty(3.0)
        types = list(dict.fromkeys(row.type for row in rows))
        subjects = list(dict.fromkeys(row.what for row in rows))
        width = 0.8 / len(subjects)
        for number, (what, colour) in enumerate(zip(subjects, (OURS, *_cycle()), strict=False)):
            chosen = [row for row in rows if row.what == what and row.ours]
            places = [types.index(row.type) + number * width for row in chosen]
            heights = [row.ours.median for row in chosen if row.ours]
            axes.bar(places, heights, width * 0.9, color=colour, label=what)
        middle = width * (len(subjects) - 1) / 2
        axes.set_xticks([place + middle for place in range(len(types))], [str(t) for t in types])
        axes.set_ylabel(unit)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
        return _svg(figure)


def _subject(row: Row) -> tuple[str, str]:
    return row.what, row.unit


def _peers(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.peer for row in rows if row.peer is not None))


def _cycle() -> list[str]:
    return list(OTHERS) * 4


def _label(row: Row) -> str:
    text = f"{row.what}, {row.case}" if row.case else row.what
    return text if len(text) <= 70 else f"{text[:69]}…"


def _limits(rows: Sequence[Row], share: bool) -> tuple[float, float]:
    ranges = [row.gain for row in rows if row.gain]
    low, high = min(gain.min for gain in ranges), max(gain.max for gain in ranges)
    return (0, max(1.05, high * 1.05)) if share else (min(low, 0.9) / 1.1, max(high, 1.1) * 1.1)


def _dot(axes: Axes, gain: Spread, place: int, colour: str) -> None:
    axes.plot([gain.min, gain.max], [place, place], color=colour, linewidth=2, alpha=0.5)
    axes.plot([gain.median], [place], "o", color=colour)


def _line(
    axes: Axes,
    points: Iterable[tuple[float | None, Spread | None]],
    colour: str,
    style: str,
    label: str,
) -> None:
    known = sorted((x, y) for x, y in ((x, y) for x, y in points if y and x is not None))
    if not known:
        return
    loads = [x for x, _ in known]
    axes.plot(loads, [y.median for _, y in known], style, marker="o", color=colour, label=label)
    low, high = [y.min for _, y in known], [y.max for _, y in known]
    axes.fill_between(loads, low, high, color=colour, alpha=0.15, linewidth=0)


def _empty(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    """Return the SVG element alone, without the head of an SVG file."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]
