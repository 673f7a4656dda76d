# SPDX-License-Identifier: Apache-2.0
"""examples/replicas: two engines on this machine behind nginx, of which one is killed."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from vllm.utils.network_utils import get_open_port

from tests.checkpoints import TINY
from tests.end_to_end.bad_media import QUESTION, printed
from tests.end_to_end.servers import MAX_MODEL_LEN, START_SECONDS, STOP_SECONDS, request

SCRIPT = TINY.parents[1] / "examples" / "replicas" / "serve.py"
SILENCE = 120
"""After so many seconds a client gives up, and the test fails."""

pytestmark = pytest.mark.skipif(
    shutil.which("nginx", path="/usr/sbin:/usr/bin") is None, reason="nginx is not installed"
)


class Replicas:
    """The running script, and the front's address."""

    def __init__(self, log: Path) -> None:
        self.log, port = log, get_open_port()
        self.processes: list[psutil.Process] = []
        self.address = f"http://127.0.0.1:{port}"
        options = ["--served-model-name", "tiny", "--max-model-len", str(MAX_MODEL_LEN)]
        options += ["--max-num-seqs", "8", "--enforce-eager"]
        command = [sys.executable, str(SCRIPT), str(TINY), "--port", str(port), "--", *options]
        with log.open("w") as output:
            self.script = psutil.Popen(command, stdout=output, stderr=output)

    def wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while "Serving at" not in self.log.read_text():
            assert self.script.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.5)
            self.processes = self.script.children(recursive=True)

    def started(self) -> list[tuple[psutil.Process, int]]:
        """Each replica's process and port."""
        found = re.findall(r"^Replica \d+: process (\d+), port (\d+)$", self.log.read_text(), re.M)
        return [(psutil.Process(int(pid)), int(port)) for pid, port in found]

    def ask(self, body: dict[str, Any]) -> int:
        """The status of the answer, which is right if it is 200."""
        answer = httpx.post(f"{self.address}/v1/chat/completions", json=body, timeout=SILENCE)
        if answer.status_code == 200 and body is PICTURE:
            assert "<answer>6021</answer>" in answer.json()["choices"][0]["message"]["content"]
        return answer.status_code


PICTURE = request(QUESTION, printed()) | {"max_tokens": 64}
TEXT = request("Who are you?") | {"max_tokens": 32}
LONG = request("Who are you?") | {"max_tokens": 900, "ignore_eos": True}


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """Two, whose processes are all gone afterwards."""
    started = Replicas(tmp_path_factory.mktemp("replicas") / "log")
    try:
        started.wait()
        yield started
    finally:
        started.script.terminate()
        code = started.script.wait(2 * STOP_SECONDS)
        left = psutil.wait_procs(started.processes, STOP_SECONDS)[1]
        for process in left:
            process.kill()
    assert not left
    assert code == 0


def counted(port: int, name: str) -> float:
    """What the replica at this port counts under a name of vLLM's metrics."""
    metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=SILENCE).text
    return sum(map(float, re.findall(rf"^vllm:{name}{{.* (\S+)$", metrics, re.M)))


def test_both_answer_and_one_is_enough(replicas: Replicas) -> None:
    """Guards text and pictures through the front, and clients of a replica that is killed."""
    with ThreadPoolExecutor(16) as clients:

        def ask(*bodies: dict[str, Any]) -> list[Future[int]]:
            return [clients.submit(replicas.ask, body) for body in bodies]

        assert {answer.result() for answer in ask(*[PICTURE, TEXT] * 6)} == {200}
        ports = [port for _, port in replicas.started()]
        assert all(counted(port, "request_success_total") for port in ports)

        running = ask(*[LONG] * 8)
        while not all(counted(port, "num_requests_running") for port in ports):
            assert not all(answer.done() for answer in running)
        victim = replicas.started()[0][0]
        victim.kill()
        victim.wait(STOP_SECONDS)
        after = ask(*[PICTURE, TEXT] * 4)
        # What the killed one had begun is an error at once, and what it had not goes to the other.
        assert {answer.result() for answer in running} == {200, 502}
        assert {answer.result() for answer in after} == {200}
    assert "1 serve on" in replicas.log.read_text()
