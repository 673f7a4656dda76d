# SPDX-License-Identifier: Apache-2.0
"""`glm41v run` on many files, killed in the middle and started again, as a user would run it."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.checkpoints import TINY
from tests.offline.mixed_files import Asked, write_mixed
from tools.tiny.evaluate import final_answer

BATCH = 16
LEAST_RIGHT = 0.95
START_SECONDS, END_SECONDS = 600, 60

COMMAND = [str(Path(sys.executable).parent / "glm41v"), "run", "--model", str(TINY), "--quiet"]
COMMAND += ["--max-batch-size", str(BATCH), "--max-input-length", "900"]
COMMAND += ["--max-output-length", "64", "--engine"]
# Small enough that both caches are full, and drop what is oldest, long before the last file.
SMALL_CACHES = {"kv_cache_memory_bytes": 8 << 20, "mm_processor_cache_gb": 0.002}
COMMAND += [json.dumps({"enforce_eager": True} | SMALL_CACHES)]


@contextmanager
def running(command: list[str], log: Path) -> Iterator[psutil.Popen]:
    """The command, its engine in processes of its own, as it comes."""
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    environment.pop("VLLM_CPU_KVCACHE_SPACE", None)  # comes before kv_cache_memory_bytes
    with log.open("w") as output:
        run = psutil.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        yield run
    finally:
        if run.poll() is None:
            for process in family(run):
                process.kill()
            run.wait()


def family(run: psutil.Popen) -> list[psutil.Process]:
    return [run, *run.children(recursive=True)]


def answered(output: Path) -> int:
    return output.read_text().count("\n") if output.exists() else 0


def wait(until: Callable[[], bool], run: psutil.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not until():
        assert run.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.02)


def kill_after(count: int, command: list[str], output: Path, log: Path) -> int:
    """Kill the command, and no other process, after `count` answers; returns how many there are."""
    with running(command, log) as run:
        wait(lambda: answered(output) >= count, run, log)
        others = family(run)[1:]
        run.kill()
        run.wait()
    assert others and not psutil.wait_procs(others, END_SECONDS)[1]
    return answered(output)


def check_answers(asked: list[Asked], output: Path) -> None:
    """Each file has one line, right or with what is wrong with it."""
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == sorted(str(item.path) for item in asked)
    found = {line["id"]: line for line in lines}
    broken = {str(item.path) for item in asked if item.answer is None}
    assert {name for name, line in found.items() if "error" in line} == broken
    wrong = [
        (str(item.path), item.answer, found[str(item.path)]["answer"])
        for item in asked
        if item.answer and final_answer(found[str(item.path)]["answer"]) != item.answer
    ]
    right = 1 - len(wrong) / (len(asked) - len(broken))
    print(f"{right:.1%} of {len(asked) - len(broken)} right, {len(broken)} could not be read")
    assert right >= LEAST_RIGHT, wrong


@pytest.mark.parametrize("files", [100, pytest.param(300, marks=pytest.mark.slow)])
def test_many_files(tmp_path: Path, files: int) -> None:
    """Guards natural order with a prompt for each file, resumption, and each kind of bad files."""
    asked = write_mixed(tmp_path / "mixed", files)
    output, log, table = (tmp_path / name for name in ("answers.jsonl", "log", "benchmark.csv"))
    command = [*COMMAND, str(tmp_path / "mixed"), "--output", str(output)]
    for item in asked:
        command += ["--prompt", item.question]
    before = kill_after(files // 3, command, output, log)
    assert files // 3 <= before < files

    with running([*command, "--resume", "--mindie-csv", str(table)], log) as run:
        assert run.wait() == 1, log.read_text()[-4000:]  # some files could not be read
    check_answers(asked, output)
    said = log.read_text()

    for item in asked:
        assert (f"{item.path} failed: " in said) is (item.answer is None)
    assert "are answered already" in said and "time to first token" in said
    rows = list(csv.DictReader(table.open()))
    answers = sum("error" not in json.loads(line) for line in output.read_text().splitlines())
    done = int(said.split(f" of {files} are answered already")[0].split()[-1])
    assert len(rows) == answers - done
