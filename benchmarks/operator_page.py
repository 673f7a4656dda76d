# SPDX-License-Identifier: Apache-2.0
"""The page of operator_calls.py: what follows from the counts, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.ascend.networks import LIFTED, WAITS
from tests.ascend.sides import IN_TREE, OURS

LAYERS, BLOCKS = (2, 4), (2, 5)
"""Depths of decoder and vision tower, in the shallow and in the deep checkpoint."""
TRUE_LAYERS, TRUE_BLOCKS = 40, 24
"""Layers of GLM-4.1V-9B."""
REQUESTS, NEW_TOKENS = 4, 8
VIEWS = ("unsqueeze", "squeeze", "squeeze.dim", "unfold")

Calls = dict[str, float]


def difference(more: Calls, less: Calls, share: int = 1) -> Calls:
    """(more - less) / share by operator, without those that are equal."""
    names = sorted({*more, *less})
    found = {name: (more.get(name, 0) - less.get(name, 0)) / share for name in names}
    return {name: calls for name, calls in found.items() if calls}


@dataclass
class Run:
    """What `measure` found with the shallow and with the deep checkpoint."""

    shallow: dict[str, Any]
    deep: dict[str, Any]

    def layer(self, step: str) -> Calls:
        """Calls of one decoder layer in a step."""
        return difference(self.deep[step], self.shallow[step], LAYERS[1] - LAYERS[0])

    @property
    def block(self) -> Calls:
        """Calls of one vision block."""
        return difference(self.deep["picture"], self.shallow["picture"], BLOCKS[1] - BLOCKS[0])

    def step(self, step: str, layers: int) -> Calls:
        """Calls of a whole step with this many decoder layers."""
        return along(self.shallow[step], self.layer(step), layers - LAYERS[0])

    def picture(self, blocks: int, kind: str = "picture") -> Calls:
        """Calls of a picture with this many vision blocks."""
        return along(self.shallow[kind], self.block, blocks - BLOCKS[0])


def along(calls: Calls, each: Calls, further: int) -> Calls:
    return difference(calls, {name: -further * number for name, number in each.items()})


def figures(run: Run) -> dict[str, Calls]:
    """The rows of the comparison."""
    several = f"decoding {REQUESTS} requests"
    return {
        "a decoder layer, prefill": run.layer("prefill"),
        "a decoder layer, decoding one request": run.layer("decode"),
        f"a decoder layer, {several}": run.layer("decode together"),
        "a vision block": run.block,
        "around the layers, prefill": run.step("prefill", 0),
        f"around the layers, {several}": run.step("decode together", 0),
        "around the blocks, a picture": run.picture(0),
        "around the blocks, the first picture of a size": run.picture(0, "first of a size"),
        f"all of a prefill step, {TRUE_LAYERS} layers": run.step("prefill", TRUE_LAYERS),
        f"all of a step {several}, {TRUE_LAYERS} layers": run.step("decode together", TRUE_LAYERS),
        f"all of a picture, {TRUE_BLOCKS} blocks": run.picture(TRUE_BLOCKS),
    }


def count(calls: Calls) -> tuple[float, float]:
    """Calls of NPU operators, and of aten operators that are no views."""
    counted = {n: number for n, number in calls.items() if n != WAITS and not is_view(n)}
    aten = sum(number for name, number in counted.items() if name.startswith("aten::"))
    return sum(counted.values()) - aten, aten


def is_view(name: str) -> bool:
    return name.removeprefix("aten::") in VIEWS


# ---- The page

HEADER = f"""\
# Operator calls

Written by `python -m benchmarks.operator_calls --write docs/operators.md`.

**From an emulated NPU; not verified on hardware.** These are counts of calls, not times. They come
from vllm-ascend's real engine over `npu_emulator`: eager, float16, one device, no asynchronous
scheduling.

Each network ran with two random checkpoints, of {LAYERS[0]} and {LAYERS[1]} decoder layers and of
{BLOCKS[0]} and {BLOCKS[1]} vision blocks, with heads of 128 channels; what one layer or block calls
is the difference. The rows of {TRUE_LAYERS} layers and {TRUE_BLOCKS} blocks, which GLM-4.1V-9B has,
are computed from those. A picture is a prefill step with it, less one without: the tower, and its
place among the text's embeddings.

A call is of an NPU operator (`npu`, `atb`, `_C_ascend`) or of an aten operator. Not counted are
views, which start no kernel ({", ".join(f"`{name}`" for name in VIEWS)}; `view`, `transpose`,
`permute`, `slice`, `split`, `expand` and the like do not even reach the emulator), and allocations.
`contiguous` counts, as it is called only where it copies, and so do `copy_` and `_to_copy`, between
host and device too. A wait is a call that lets the host wait for the device: a value or a size that
is fetched, or a copy that is not asynchronous from pinned memory. Waits for events, as for the
tokens of a step, are not counted.
"""

REFUSED = """\
The in-tree class does not run here: the chip refuses its calls of {}. Its counts are those of an
emulated chip that takes these all the same; its answers are wrong.
"""

ALL = f"""\
All that ours calls, from the start of an engine with {LAYERS[0]} layers and {BLOCKS[0]} blocks to
the end of its first answer to a picture, of {NEW_TOKENS} tokens:
"""


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def comparison(ours: Run, theirs: Run) -> list[str]:
    """Calls of both, and how often the host waits."""
    lines = [
        row("NPU + aten", "ours", "in-tree", "ours / in-tree", "waits, ours", "waits, in-tree"),
        row(*["---"] * 6),
    ]
    other = figures(theirs)
    for title, calls in figures(ours).items():
        sums = [count(calls), count(other[title])]
        cells = [f"{npu:g} + {aten:g} = {npu + aten:g}" for npu, aten in sums]
        waits = [f"{found.get(WAITS, 0):g}" for found in (calls, other[title])]
        lines.append(row(title, *cells, f"{sum(sums[0]) / sum(sums[1]):.2f}", *waits))
    return lines


def by_operator(ours: Run, theirs: Run) -> list[str]:
    """The calls of a layer, of a block and around the blocks, each operator of either."""
    found: dict[str, list[Calls]] = {
        "layer, prefill": [run.layer("prefill") for run in (ours, theirs)],
        f"layer, decoding {REQUESTS}": [run.layer("decode together") for run in (ours, theirs)],
        "block": [run.block for run in (ours, theirs)],
        "around the blocks": [run.picture(0) for run in (ours, theirs)],
    }
    titles = [f"{part}: {side}" for part in found for side in (OURS, IN_TREE)]
    columns = [calls for pair in found.values() for calls in pair]
    names = sorted({name for calls in columns for name in calls} - {WAITS}, key=rank)
    return [row("operator", *titles), row(*["---"] * (1 + len(titles)))] + [
        row(shown(name), *(f"{calls[name]:g}" if name in calls else "" for calls in columns))
        for name in names
    ]


def operators(run: Run) -> list[str]:
    """Everything that was called, with the document that the chip's table names."""
    whole, documents = run.shallow["whole"], run.shallow["documents"]
    return [row("operator", "calls", "document"), row(*["---"] * 3)] + [
        row(shown(name), whole[name], documents[name]) for name in sorted(documents, key=rank)
    ]


def rank(name: str) -> tuple[bool, str]:
    """NPU operators first."""
    return name.startswith("aten::"), name


def shown(name: str) -> str:
    return f"{name} (view)" if is_view(name) else name


def page(runs: dict[str, dict[str, Run]]) -> str:
    """docs/operators.md."""
    lines = [HEADER]
    for sides in runs.values():
        ours, theirs = sides[OURS], sides[IN_TREE]
        chip = ours.shallow["chip"]
        lines += [f"## {chip}", ""]
        if chip in LIFTED:
            lines.append(REFUSED.format(", ".join(f"`{name}`" for name in LIFTED[chip])))
        lines += [*comparison(ours, theirs), "", *by_operator(ours, theirs), ""]
        lines += [ALL, *operators(ours), ""]
    return "\n".join(lines)
