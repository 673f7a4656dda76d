# SPDX-License-Identifier: Apache-2.0
"""The server that several files share, and a check on operator calls.

On an emulated NPU, every test here also holds all operator calls against the chip's table.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.end_to_end.servers import NO_SPACES, VIDEOS, Server, serving
from tests.lane import EMULATED


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `server` writes."""
    return tmp_path_factory.mktemp("server") / "log"


@pytest.fixture(scope="session")
def shared_server(log: Path, checkpoint: Callable[[str], Path]) -> Iterator[Server]:
    """`vllm serve` on the tiny checkpoint, with so small a cache of media that it evicts."""
    options = ["--served-model-name", "tiny", "--limit-mm-per-prompt", '{"image": 3, "video": 2}']
    options += ["--trust-request-chat-template", "--allowed-local-media-path", str(VIDEOS)]
    options += ["--enable-prompt-tokens-details", "--structured-outputs-config", NO_SPACES]
    options += ["--mm-processor-cache-gb", "0.001"]
    with serving(checkpoint("tiny"), log, *options) as server:
        yield server


@pytest.fixture(scope="session")
def server(shared_server: Server) -> Iterator[httpx.Client]:
    """A client of the shared server."""
    with shared_server.client() as client:
        yield client


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
