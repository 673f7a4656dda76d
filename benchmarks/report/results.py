# SPDX-License-Identifier: Apache-2.0
"""Results of a benchmark: the one format of the files that `python -m benchmarks.run` writes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

FORMAT: Literal["glm41v-benchmark/1"] = "glm41v-benchmark/1"
FLOOR = "floor"
"""The name of a peer that is no program: the least time that the machine could take."""

WANTED = "a folder of files that `python -m benchmarks.run` wrote"


class ResultsError(ValueError):
    """A folder or a file that no report can be made of; the message says which, and what to do."""


class Record(BaseModel):
    """The base of these models: a file may hold nothing that they do not name."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Spread(Record):
    """A figure that was measured in several rounds."""

    median: float
    min: float
    max: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(
            median=statistics.median(values), min=min(values), max=max(values), rounds=len(values)
        )


class Row(Record):
    """One figure of ours, and that of a peer in the same run.

    what: the figure's name; it has the same unit and direction in all rows.
    case: the input, dtype and whatever else tells rows of one name apart.
    peer: who it is compared with, or FLOOR.
    ours, theirs: None where this side has no such figure.
    gain: how many times better ours is than theirs; for FLOOR, the share of it that is reached.
    load: what the server was under, in `load_unit`.
    type: the type of quantization, where accuracy is the figure.
    """

    what: str
    case: str
    unit: str
    higher_is_better: bool = False
    ours: Spread | None
    peer: str | None = None
    theirs: Spread | None = None
    gain: Spread | None = None
    load: float | None = None
    load_unit: str | None = None
    type: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Row:
        if (self.peer is None) != (self.theirs is None):
            raise ValueError("`peer` and `theirs` come together")
        if self.gain is not None and (self.ours is None or self.theirs is None):
            raise ValueError("`gain` is of `ours` and `theirs`, and one of them is missing")
        if (self.load is None) != (self.load_unit is None):
            raise ValueError("`load` and `load_unit` come together")
        return self


class Missing(Record):
    """A case that was not measured, and the reason."""

    what: str
    why: str


class Machine(Record):
    """The machine that it ran on. `device` is the NPU's name, or CPU."""

    cpu: str
    cores: int
    memory_gib: float
    device: str
    date: str


class Result(Record):
    """One benchmark: its subject, machine, command and results.

    seconds: how long it took.
    why: nothing was measured: the last lines of one that failed, or why it was left out.
    """

    format: Literal["glm41v-benchmark/1"] = FORMAT
    name: str
    title: str
    status: Literal["measured", "failed", "left out"]
    command: str
    machine: Machine
    versions: dict[str, str]
    seconds: float = 0.0
    rows: tuple[Row, ...] = ()
    missing: tuple[Missing, ...] = ()
    notes: tuple[str, ...] = ()
    why: str | None = None

    def write(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=1) + "\n")


def compare(
    what: str,
    case: str,
    unit: str,
    ours: Sequence[float],
    peer: str | None = None,
    theirs: Sequence[float] = (),
    *,
    higher_is_better: bool = False,
    load: tuple[float, str] | None = None,
    type: str | None = None,
) -> Row:
    """Return a row of figures, one a round; both sides are compared round by round.

    There is no gain over nothing: where a round would divide by zero.

    Args:
        ours: empty where only the peer has the figure.
        theirs: as many as ours, or none.
        load: how much of what the server was under.
    """
    pairs = list(zip(ours, theirs, strict=True)) if len(ours) and len(theirs) else []
    parts = [(a, b) if higher_is_better else (b, a) for a, b in pairs]
    gains = [above / below for above, below in parts] if all(b for _, b in parts) else []
    return Row(
        what=what,
        case=case,
        unit=unit,
        higher_is_better=higher_is_better,
        ours=Spread.of(ours) if len(ours) else None,
        peer=peer if len(theirs) else None,
        theirs=Spread.of(theirs) if len(theirs) else None,
        gain=Spread.of(gains) if gains else None,
        load=load[0] if load else None,
        load_unit=load[1] if load else None,
        type=type,
    )


def read(folder: Path) -> list[Result]:
    """Return every result in a folder, in the order of the files' names.

    Raises:
        ResultsError: The folder has none, or a file that is something else.
    """
    if not folder.is_dir():
        raise ResultsError(f"{folder} is no folder; expected {WANTED}.")
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ResultsError(f"{folder} has no JSON file; expected {WANTED}: run it first.")
    return [read_file(file) for file in files]


def read_file(file: Path) -> Result:
    """Return one result; raise ResultsError where the file is something else."""
    try:
        return Result.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise ResultsError(
            f"{file} is no result of a benchmark in the format {FORMAT}: {place}: {first['msg']} "
            f"({error.error_count()} such). Expected {WANTED}: move other files elsewhere, and "
            "measure those of another format again."
        ) from None
