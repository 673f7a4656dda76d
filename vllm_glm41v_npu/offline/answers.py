# SPDX-License-Identifier: Apache-2.0
"""The answers of a run: a JSONL that grows as they come, and what they say together."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MINDIE_COLUMNS = (
    "batch_size",
    "input_seq_len",
    "output_seq_len",
    "e2e_time(ms)",
    "prefill_time(ms)",
    "decoder_token_time(ms)",
    "prefill_count",
    "prefill_token_times",
    "decode_token_times",
    "prefill_average_time(ms)",
)
"""Of MindIE's benchmark.csv."""


@dataclass(frozen=True)
class Answer:
    """One line of the results; either `answer` or `error`.

    seconds: from when the engine had it to its last token.
    first_seconds: to its first token.
    step_seconds: of each further step of the engine that gave it tokens, one or, of guesses,
        several; empty where they were not asked for.
    """

    id: str
    answer: str | None = None
    error: str | None = None
    finish_reason: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    first_seconds: float = 0.0
    step_seconds: tuple[float, ...] = ()

    @property
    def token_seconds(self) -> float:
        """Mean time of a token after the first one."""
        return (self.seconds - self.first_seconds) / max(self.output_tokens - 1, 1)


class AnswerFile:
    """A JSONL of answers, whole after every line.

    Args:
        path: Where to.
        resume: Go on with what is there. A last line that was cut off is dropped, and so are
            errors, which are tried again.

    Raises:
        FileExistsError: It is there, and `resume` is not asked for.
        ValueError: It holds something else than answers.
    """

    def __init__(self, path: Path, resume: bool = False) -> None:
        if path.exists() and not resume:
            raise FileExistsError(
                f"{path} exists. Choose another --output, or go on with it by --resume."
            )
        kept = list(_read(path)) if path.exists() else []
        self.done = {answer["id"] for answer in kept}
        path.parent.mkdir(parents=True, exist_ok=True)
        rewritten = path.with_name(f".{path.name}.new")
        rewritten.write_text("".join(f"{_line(answer)}\n" for answer in kept))
        rewritten.replace(path)
        self._file = path.open("a")

    def write(self, answer: Answer) -> None:
        """Add one line, and have it on its way to the disk."""
        known = {key: value for key, value in asdict(answer).items() if value not in (None, 0, ())}
        self._file.write(f"{_line(known)}\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _line(answer: dict[str, Any]) -> str:
    return json.dumps(answer, ensure_ascii=False)


def _read(path: Path) -> Iterable[dict[str, Any]]:
    lines = path.read_text().split("\n")
    for number, line in enumerate(lines, 1):
        try:
            answer = json.loads(line) if line else None
        except ValueError:
            if number == len(lines):  # without an end of line: it was being written
                return
            answer = line
        if answer is None:
            continue
        if not isinstance(answer, dict) or "id" not in answer:
            raise ValueError(
                f"{path}, line {number}, is no answer of an earlier run. Choose another --output."
            )
        if "error" not in answer:
            yield answer


def summary(answers: Sequence[Answer], seconds: float) -> list[tuple[str, str]]:
    """What the answers of one run say together, as rows of a table.

    Args:
        seconds: How long the run took, from the first request to the last answer.
    """
    good = [answer for answer in answers if answer.error is None]
    rows = [("answered", str(len(good))), ("failed", str(len(answers) - len(good)))]
    if not good:
        return rows
    tokens = sum(answer.output_tokens for answer in good)
    inputs = sum(answer.input_tokens for answer in good)
    return [
        *rows,
        ("input tokens", str(inputs)),
        ("output tokens", str(tokens)),
        ("requests per second", f"{len(good) / seconds:.2f}"),
        ("output tokens per second", f"{tokens / seconds:.1f}"),
        ("time to first token, s", _spread([answer.first_seconds for answer in good])),
        ("time per output token, s", _spread([answer.token_seconds for answer in good])),
        ("time of a request, s", _spread([answer.seconds for answer in good])),
    ]


def _spread(values: Sequence[float]) -> str:
    """Median and, of ten or more, the value that nine in ten stay below."""
    median = f"{statistics.median(values):.3f}"
    if len(values) < 10:
        return median
    return f"{median} (90%: {statistics.quantiles(values, n=10)[-1]:.3f})"


def write_mindie_csv(path: Path, answers: Sequence[Answer], batch_size: int) -> None:
    """A row for each answer under MindIE's names; there, a row is a batch.

    Lists of times have commas between them.

    Raises:
        OSError: It cannot be written.
    """
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(MINDIE_COLUMNS)
        for answer in answers:
            if answer.error is None:
                first = _ms(answer.first_seconds)
                lengths = (batch_size, answer.input_tokens, answer.output_tokens)
                times = (_ms(answer.seconds), first, _ms(answer.token_seconds))
                steps = ",".join(str(_ms(step)) for step in answer.step_seconds)
                writer.writerow([*lengths, *times, 1, first, steps, first])


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)
