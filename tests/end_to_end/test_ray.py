# SPDX-License-Identifier: Apache-2.0
"""An engine whose workers are Ray's, as examples/ray/serve.sh starts it, on emulated NPUs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from npu_emulator.settings import CHIPS, current_chip
from tests.end_to_end.cases import CASES
from tests.end_to_end.servers import left_behind
from tests.engines import Oracle, ask, check, engine
from tests.lane import EMULATED

ray = pytest.importorskip("ray", reason="needs Ray, which is in .venv-ascend")

# vLLM 0.23.0 gives Ray no name for CPUs, and refuses: "current platform cpu does not support ray".
pytestmark = [
    pytest.mark.ascend,
    pytest.mark.ranks,
    pytest.mark.skipif(
        EMULATED and current_chip() is not CHIPS["A2"],
        reason="Ray's executor does not know the chip: Atlas A2 is enough",
    ),
]

NAMES = ("text", "one-picture", "video")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray of this test's own, with two NPUs that it cannot see because they are emulated.

    None of its processes may outlive it.
    """
    monkeypatch.setenv("RAY_EXPERIMENTAL_NOSET_ASCEND_RT_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    before = set(psutil.Process().children(recursive=True))
    # pytest's folders are too deep for the names of Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ray.init(
            address="local",
            resources={"NPU": 2},
            include_dashboard=False,
            object_store_memory=100 << 20,
            _temp_dir=folder,
        )
        started = set(psutil.Process().children(recursive=True)) - before
        assert started
        yield
        workers = [child for process in started for child in process.children(recursive=True)]
        ray.shutdown()
        left = left_behind({*started, *workers})
        for process in left:
            process.kill()
    assert not left, f"left behind: {left}"


@pytest.mark.usefixtures("cluster")
def test_workers_of_ray_equal_transformers(checkpoint: Callable[[str], Path]) -> None:
    """Guards the way of pictures and videos to two workers that Ray starts."""
    path = checkpoint("tiny")
    oracle = Oracle(path)
    with engine(path, distributed_executor_backend="ray", tensor_parallel_size=2) as llm:
        outputs = ask(llm, [CASES[name] for name in NAMES])
    for output, name in zip(outputs, NAMES, strict=True):
        check(output, CASES[name], oracle)
