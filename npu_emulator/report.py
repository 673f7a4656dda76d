# SPDX-License-Identifier: Apache-2.0
"""The operator calls of a process, as a file for whoever reads a run afterwards."""

from __future__ import annotations

import atexit
import json
import os
import threading
import time
from multiprocessing import util

from npu_emulator import _boxed, graphs
from npu_emulator.checks import Checker
from npu_emulator.settings import report_folder

SECONDS = 2.0
"""After which a report has what was called before."""


class Report:
    """Writes `<process id>.json` where NPU_EMULATOR_REPORT says, if it is set.

    At each refusal, every SECONDS while there are calls, and at the end: chip, calls (how often
    each operator ran), waits (how often each made the host wait for the device), graphs (captures,
    replays, updates), refused (sentences), examples (first calls). A forked process has a report
    of its own calls.
    """

    def __init__(self, checker: Checker) -> None:
        self.checker = checker
        checker.on_refusal = self.write
        atexit.register(self.write)
        util.register_after_fork(self, Report.start_again)
        self.start()

    def start(self) -> None:
        self.lock = threading.Lock()
        util.Finalize(None, self.write, exitpriority=0)  # worker processes end without atexit
        if report_folder() is not None:
            threading.Thread(target=self.keep_writing, daemon=True).start()

    def start_again(self) -> None:
        """In a process that was forked, forget what its parent called."""
        _boxed.forget_calls()
        graphs.counts.update(dict.fromkeys(graphs.counts, 0))
        self.checker.refused.clear()
        self.checker.examples.clear()
        self.start()

    def keep_writing(self) -> None:
        written: dict[str, int] = {}
        while True:
            time.sleep(SECONDS)
            if (calls := _boxed.calls()) != written:
                self.write()
                written = calls

    def write(self) -> None:
        folder = report_folder()
        if folder is None:
            return
        with self.lock:
            record = {
                "chip": self.checker.chip,
                "calls": _boxed.calls(),
                "waits": _boxed.waits(),
                "graphs": graphs.counts,
                "refused": self.checker.refused,
                "examples": self.checker.examples,
            }
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / f"{os.getpid()}.partial"
            partial.write_text(json.dumps(record, indent=1))
            partial.rename(partial.with_suffix(".json"))
