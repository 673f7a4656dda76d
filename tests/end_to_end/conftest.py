# SPDX-License-Identifier: Apache-2.0
"""On an emulated NPU, every test here also holds all operator calls against the chip's table."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lane import EMULATED


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


def wait_for_reports() -> None:
    """Until every report has what was called before."""
    from npu_emulator.report import SECONDS

    time.sleep(SECONDS + 1)


def read(reports: Path) -> list[dict[str, Any]]:
    """What the other processes of a test called."""
    return [json.loads(path.read_text()) for path in reports.glob("*.json")]
