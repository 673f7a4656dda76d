# SPDX-License-Identifier: Apache-2.0
"""The server that several files share, and a check on operator calls.

On an emulated NPU, every test here also holds all operator calls against the chip's table.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.end_to_end.servers import NO_SPACES, VIDEOS, Server, serving
from tests.lane import BACKEND, EMULATED
from vllm_glm41v_npu.backends import ATLAS_310P
from vllm_glm41v_npu.serving.command import ROUTES


@pytest.fixture(scope="session", autouse=True)
def shared_reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the operator reports of processes that outlive a test, such as servers.

    It is set up before any server is started, and read again after the last one has ended.
    """
    reports = tmp_path_factory.mktemp("operators")
    if not EMULATED:
        yield reports
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPU_EMULATOR_REPORT", str(reports))
        yield reports
    assert refused(reports) == Counter()


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
    # One request of MindIE's is answered here on Atlas 310P; test_mindie_server.py has the rest.
    options += ["--middleware", ROUTES] if BACKEND is ATLAS_310P else []
    with serving(checkpoint("tiny"), log, *options) as server:
        yield server


@pytest.fixture(scope="session")
def server(shared_server: Server) -> Iterator[httpx.Client]:
    """A client of the shared server."""
    with shared_server.client() as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared_reports: Path
) -> Iterator[Path]:
    """The folder of this test's reports; no process may make a call that the chip would refuse.

    A refusal ends the call that made it, but an engine or a server may catch that and go on. So
    this looks at the test's own process, the processes that it started, and the servers.
    """
    reports = tmp_path / "reports"
    if not EMULATED:
        yield reports
        return
    monkeypatch.setenv("NPU_EMULATOR_REPORT", str(reports))
    own, shared = len(own_refusals()), refused(shared_reports)
    yield reports
    assert own_refusals()[own:] == []
    assert refused(reports) == Counter()
    assert refused(shared_reports) - shared == Counter()


def own_refusals() -> list[str]:
    """The sentences of all refused calls of this process."""
    from npu_emulator.emulator import install

    return install().refused


def wait_for_reports() -> None:
    """Until every report has what was called before."""
    from npu_emulator.report import SECONDS

    time.sleep(SECONDS + 1)


def read(reports: Path) -> list[dict[str, Any]]:
    """The reports of all processes that write to a folder, one each."""
    return [json.loads(path.read_text()) for path in reports.glob("*.json")]


def refused(reports: Path) -> Counter[str]:
    """The sentences of all refused calls in a folder of reports, each with its process.

    This process is left out: `own_refusals` has its calls, and tests of other folders may have made
    refused ones on purpose.
    """
    return Counter(
        f"process {path.stem}: {sentence}"
        for path in reports.glob("*.json")
        if path.stem != str(os.getpid())
        for sentence in json.loads(path.read_text())["refused"]
    )
