# SPDX-License-Identifier: Apache-2.0
"""End an engine core when the process that started it was killed.

vLLM's workers watch the process above them; its engine core (0.23.0) waits for requests for ever,
and keeps the device's memory from the next server. Ends when the engine core watches too.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

_NAME = "glm41v-parent-watch"


def apply() -> None:
    """Watch in a thread of the engine core's process; elsewhere, and if one watches, do nothing."""
    parent = multiprocessing.parent_process()
    is_engine = multiprocessing.current_process().name.startswith("EngineCore")
    is_watched = any(thread.name == _NAME for thread in threading.enumerate())
    if parent is None or not is_engine or is_watched:
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name=_NAME, daemon=True).start()
