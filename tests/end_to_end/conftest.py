# SPDX-License-Identifier: Apache-2.0
"""On an emulated NPU, every test here also holds all operator calls against the chip's table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lane import EMULATED

REPORT_SECONDS = 3
"""After which a report has what was called before."""


@pytest.fixture(autouse=True)
def nothing_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder of the reports; no process may have made a call that the chip would refuse.

    A refusal ends the call that made it, but an engine may catch that and go on.
    """
    reports = tmp_path / "reports"
    if not EMULATED:
        yield reports
        return
    from npu_emulator.emulator import install

    monkeypatch.setenv("NPU_EMULATOR_REPORT", str(reports))
    before = len(install().refused)
    yield reports
    assert install().refused[before:] == []
    assert [report["refused"] for report in read(reports) if report["refused"]] == []


def read(reports: Path) -> list[dict[str, Any]]:
    """What the other processes of a test called."""
    return [json.loads(path.read_text()) for path in reports.glob("*.json")]
