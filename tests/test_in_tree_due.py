# SPDX-License-Identifier: Apache-2.0
"""When vLLM's own class is looked at: with other lock files than it last was, or when asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ascend import sides


def test_another_lock_file_makes_it_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a new vLLM or vllm-ascend whose class is never looked at."""
    monkeypatch.delenv("IN_TREE", raising=False)
    record = tmp_path / "record"
    monkeypatch.setattr(sides, "RECORD", record)
    assert sides.sides() == (sides.IN_TREE, sides.OURS)
    record.write_text(sides.fingerprint() + "\n")
    assert sides.sides() == (sides.OURS,)
    monkeypatch.setenv("IN_TREE", "1")
    assert sides.sides() == (sides.IN_TREE, sides.OURS)
    monkeypatch.delenv("IN_TREE")
    record.write_text("another\n")
    assert sides.sides() == (sides.IN_TREE, sides.OURS)
