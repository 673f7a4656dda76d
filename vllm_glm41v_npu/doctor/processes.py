# SPDX-License-Identifier: Apache-2.0
"""Other programs, run so that this process survives their crashing or hanging."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO


@dataclass(frozen=True)
class Outcome:
    """The end of a program, and its output.

    code: its exit code; negative, the signal that ended it; None, it did not end in time.
    """

    code: int | None
    stdout: str
    stderr: str
    seconds: float

    @property
    def trouble(self) -> str:
        """The reason why it did not end well, in a line; empty if it did."""
        if self.code is None:
            return f"no answer within {self.seconds:g} s"
        if self.code == 0:
            return ""
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        said = f": {lines[-1].strip()}" if lines else ""
        if self.code < 0:
            return f"ended by {_signal_name(-self.code)}{said}"
        return f"exit code {self.code}{said}"


def run(command: Sequence[str], environ: Mapping[str, str], seconds: float) -> Outcome:
    """Run `command` for at most `seconds`."""
    # Files, not pipes: a process that hangs in a driver cannot be killed, and would keep its end
    # of a pipe open, and whoever reads the other end waiting.
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        try:
            process = subprocess.Popen(
                command,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        except OSError as error:
            return Outcome(127, "", str(error), seconds)
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
            _kill(process)
        return Outcome(code, _text(stdout), _text(stderr), seconds)


def _text(file: IO[bytes]) -> str:
    """Return all that was written into the file."""
    file.seek(0)
    return file.read().decode(errors="replace")


def _kill(process: subprocess.Popen) -> None:
    """End a process and all that it started; wait only briefly where it cannot be ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
