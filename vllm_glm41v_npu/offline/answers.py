# SPDX-License-Identifier: Apache-2.0
"""The answers of a run: a JSONL that grows as they come, and their summary."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import logging
import os
import shutil
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakSet

from vllm_glm41v_npu.offline.answer_lines import encode, read_answers

logger = logging.getLogger(f"vllm.{__name__}")

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
"""The columns of MindIE's benchmark.csv."""


class RunEnded(Exception):
    """The run cannot go on; the message says why, and `code` is what the command exits with."""

    code = 1


@dataclass(frozen=True)
class Answer:
    """One line of the results; either `answer` or `error`.

    seconds: from when the engine had it to its last token.
    first_seconds: to its first token.
    step_seconds: of each later step of the engine that gave it tokens, one or, with draft tokens,
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
        """Mean seconds of a token after the first one."""
        return (self.seconds - self.first_seconds) / max(self.output_tokens - 1, 1)


class AnswerFile:
    """A JSONL of answers, whole after every line, that one run at a time writes.

    Args:
        path: The file. Where it is a link, the file that it points to is written.
        resume: Go on with what is there. A last line that was cut off is dropped, and so are
            errors, which are tried again.

    Raises:
        FileExistsError: It exists, and `resume` is not set.
        ValueError: It holds something else than answers, is no file, or another run writes it.
        OSError: It cannot be written.
    """

    def __init__(self, path: Path, resume: bool = False) -> None:
        self.path, self._new = Path(os.path.realpath(path)), not resume
        make_folder(self.path)
        _leave_files_to_parent()
        self._file = _open(self.path, resume)
        _files.add(self)
        try:
            self._lock()
            kept, whole = read_answers(self._file.read(), path)
            if not whole:
                self._rewrite(kept)
            self._size = self._file.seek(0, os.SEEK_END)
        except BaseException:
            self._file.close()
            raise
        self.done = {answer["id"] for answer in kept}

    def write(self, answer: Answer) -> None:
        """Add one line, and hand it to the system.

        Raises:
            OSError: The disk is full, the file has gone, or the like; the file ends as before.
        """
        known = {key: value for key, value in asdict(answer).items() if value not in (None, 0, ())}
        if not self._is_there():
            raise OSError(errno.ENOENT, "it was removed or replaced while the run wrote it")
        try:
            _write(self._file, encode(known))
        except OSError:
            with suppress(OSError):  # if not even this, the next run drops what was cut off
                self._file.truncate(self._size)
            raise
        self._size = self._file.tell()

    def close(self) -> None:
        """Let other runs have the file; a new one without an answer is removed."""
        if not self._file.closed and self._new and not self._size and self._is_there():
            self.path.unlink()
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = self._is_there()  # or the other run has just rewritten it
        except BlockingIOError:
            mine = False
        except OSError as error:  # some network file systems have no locks
            logger.warning("%s cannot be locked (%s): use it in one run.", self.path, error)
            mine = True
        if not mine:
            raise ValueError(
                f"{self.path} is being written by another run. Wait for its end, or choose another "
                "--output."
            )

    def _is_there(self) -> bool:
        """Return True where the name still stands for the file that is open."""
        with suppress(OSError):
            return os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno()))
        return False

    def _rewrite(self, answers: Sequence[dict[str, Any]]) -> None:
        """Replace the open file by one of these answers, which is locked too."""
        new = self.path.with_name(f".{self.path.name}.new")
        new.unlink(missing_ok=True)  # of a run that was killed here: this one has the lock
        old, self._file = self._file, _open(new, resume=False)
        with old:
            try:
                _write(self._file, b"".join(map(encode, answers)))
                os.fsync(self._file.fileno())
                with suppress(OSError):  # without locks, or on a file of another user
                    fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.copymode(self.path, new)
                new.replace(self.path)
            except OSError as error:  # as on a full disk: the old file is as it was
                new.unlink(missing_ok=True)
                raise OSError(error.errno, error.strerror, str(self.path)) from error


_files: WeakSet[AnswerFile] = WeakSet()


@cache
def _leave_files_to_parent() -> None:
    """Have forked processes, such as an engine's, close the files: they would keep their locks."""

    def close() -> None:
        for file in _files:
            file._file.close()

    os.register_at_fork(after_in_child=close)


def make_folder(path: Path) -> None:
    """Make the folder that a file is to be in.

    Raises:
        ValueError: There is a file in its place.
        OSError: It cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{path} cannot be written: {path.parent} is no folder.") from error


def _open(path: Path, resume: bool) -> io.FileIO:
    """Open for reading and appending, without a buffer that would keep what could not be written.

    Without `resume` the file must not exist.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
    if path.exists() and not path.is_file():  # opening a device may already do something
        raise ValueError(f"{path} is a folder, a pipe or a device. Choose a file for --output.")
    try:
        number = os.open(path, flags | (0 if resume else os.O_EXCL), 0o666)
    except FileExistsError as error:
        raise FileExistsError(
            f"{path} exists. Choose another --output, or go on with it by --resume."
        ) from error
    return io.FileIO(number, "r+")


def _write(file: io.FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # a disk that is nearly full takes a part
        rest = rest[file.write(rest) :]


def summary(answers: Sequence[Answer], seconds: float) -> list[tuple[str, str]]:
    """Return the summary of one run's answers, as rows of a table.

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
    """Return the median and, for ten values or more, the 90th percentile."""
    median = f"{statistics.median(values):.3f}"
    if len(values) < 10:
        return median
    return f"{median} (90%: {statistics.quantiles(values, n=10)[-1]:.3f})"


def write_mindie_csv(path: Path, answers: Sequence[Answer], batch_size: int) -> None:
    """Write a row for each answer under MindIE's names; in MindIE a row is a batch.

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
