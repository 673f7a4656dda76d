# SPDX-License-Identifier: Apache-2.0
"""Which networks the breakages are looked for in: ours always, vLLM's in-tree class when due.

The in-tree class changes only with the lock files. Its side of test_breakages.py and
test_quantized_breakages.py takes minutes on each chip, and runs when the lock files are not those
it last ran with, or when asked for: `make test-in-tree` runs it, and writes down the lock files.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCKS = ("cpu.lock", "ascend.lock")
RECORD = ROOT / "tests" / "data" / "in_tree_locks.txt"
"""The fingerprint of the lock files with which `make test-in-tree` passed last."""

IN_TREE, OURS = "in-tree", "ours"


def fingerprint() -> str:
    """Hash of the lock files of .venv-ascend."""
    locks = b"".join((ROOT / "requirements" / name).read_bytes() for name in LOCKS)
    return hashlib.sha256(locks).hexdigest()[:16]


def sides() -> tuple[str, ...]:
    """The networks to test in this run."""
    asked = os.environ.get("IN_TREE") == "1"
    due = asked or not RECORD.exists() or RECORD.read_text().strip() != fingerprint()
    return (IN_TREE, OURS) if due else (OURS,)


if __name__ == "__main__":
    RECORD.write_text(fingerprint() + "\n")
