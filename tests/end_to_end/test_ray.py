# SPDX-License-Identifier: Apache-2.0
"""An engine whose worker is Ray's, as examples/ray/serve.sh starts it, on an emulated NPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.cases import CASES
from tests.engines import Oracle, ask, check, engine

ray = pytest.importorskip(
    "ray", reason="needs Ray: pip install --no-deps ray==2.60.0 msgpack, into .venv-ascend"
)

# vLLM 0.23.0 gives Ray no name for CPUs, and refuses: "current platform cpu does not support ray".
pytestmark = [pytest.mark.ascend, pytest.mark.ranks]

NAMES = ("text", "one-picture", "video")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine alone, with an NPU that Ray cannot see because it is emulated."""
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"NPU": 1}')
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_a_worker_of_ray_equals_transformers(checkpoint: Callable[[str], Path]) -> None:
    """Guards the way of pictures and videos to a worker that Ray starts."""
    path = checkpoint("tiny")
    oracle = Oracle(path)
    with engine(path, distributed_executor_backend="ray") as llm:
        for output, name in zip(ask(llm, [CASES[name] for name in NAMES]), NAMES, strict=True):
            check(output, CASES[name], oracle)
