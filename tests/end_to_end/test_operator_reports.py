# SPDX-License-Identifier: Apache-2.0
"""The check on the operator reports of servers, which every test of this folder passes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end import conftest


def write(reports: Path, process: int, *refused: str) -> None:
    (reports / f"{process}.json").write_text(json.dumps({"refused": refused}))


def test_a_call_that_a_server_was_refused_fails_the_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against refusals that only a server's log shows; those of an earlier test are its."""
    shared = tmp_path / "shared"
    shared.mkdir()
    write(shared, 1, "an earlier one")
    write(shared, 2)
    write(shared, os.getpid(), "one of this process, made on purpose by another test")
    monkeypatch.setattr(conftest, "EMULATED", True)
    monkeypatch.setattr(conftest, "own_refusals", list)
    fixture: Any = conftest.nothing_refused
    check = fixture.__wrapped__(monkeypatch, tmp_path / "own", shared)
    assert next(check) == tmp_path / "own" / "reports"
    assert next(check, "passed") == "passed"

    check = fixture.__wrapped__(monkeypatch, tmp_path / "own", shared)
    next(check)
    write(shared, 2, "npu::grid_sampler is refused")
    with pytest.raises(AssertionError, match="grid_sampler"):
        next(check)
