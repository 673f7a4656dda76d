# SPDX-License-Identifier: Apache-2.0
"""What the emulated NPU does in processes of their own: collectives, reports, its libraries."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.ascend
ROOT = Path(__file__).resolve().parents[2]

COLLECTIVES = """
import os, sys
import torch
import torch.distributed as dist
from npu_emulator import emulator

rank = int(sys.argv[1])
emulator.install()
torch.npu.set_device(rank)
dist.init_process_group("hccl", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
device = torch.device("npu", rank)
mine = torch.full((2, 3), rank + 1.0, device=device)

total = mine.clone()
dist.all_reduce(total)
assert total.device == device and total.eq(3).all()

parts = [torch.zeros_like(mine) for _ in range(2)]
dist.all_gather(parts, mine)
assert [float(part[1, 2]) for part in parts] == [1, 2]
whole = mine.new_zeros(4, 3)
dist.all_gather_into_tensor(whole, mine)
assert whole[:, 0].tolist() == [1, 1, 2, 2]

sent = mine.clone()
dist.broadcast(sent, src=1)
assert sent.eq(2).all()

group = dist.new_group([0, 1], backend="hccl")
work = dist.all_reduce(mine[1:], group=group, async_op=True)
work.wait()
assert mine[0].eq(rank + 1).all() and mine[1].eq(3).all()

steps = torch.zeros(2, device=device)
graph = torch.npu.NPUGraph()
with torch.npu.graph(graph):
    steps.add_(rank + 1)
    dist.all_reduce(steps)
assert steps.eq(3).all()
graph.replay()
assert steps.eq(9).all()  # 3 + 1 and 3 + 2

called = emulator.calls()
assert called["c10d::allreduce_"] == 4 and called["c10d::allgather_"] == 1, called
dist.destroy_process_group()
print("rank", rank, "is right")
"""

PLUGIN = """
from vllm.plugins import load_general_plugins

load_general_plugins()
import multiprocessing, os, signal, time
import torch

def child():
    torch.ones(4, device="npu").mul_(2)
    time.sleep(3)
    os.kill(os.getpid(), signal.SIGKILL)

process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join()
x = torch.ones(2, 3, device="npu")
print((x + 1).sum().item())
torch.linalg.cholesky(x)
"""


TIMEOUT = 300
# The loader binds every symbol of a library at once, and names the first that is missing.
ENVIRONMENT = {"LD_BIND_NOW": "1", "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def start(code: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_collectives_of_two_processes(tmp_path: Path) -> None:
    ranks = [start(COLLECTIVES, rank, tmp_path / "store") for rank in range(2)]
    for rank, process in enumerate(ranks):
        out, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, errors[-3000:]
        assert f"rank {rank} is right" in out


def test_processes_of_vllm_leave_reports_however_they_die(tmp_path: Path) -> None:
    """The entry point has installed the emulator there, and no symbol was missing."""
    process = start(PLUGIN, NPU_EMULATOR_REPORT=str(tmp_path / "reports"))
    out, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1 and "12.0" in out
    assert "Refusal: aten::linalg_cholesky has no row" in errors
    reports = {path.name: json.loads(path.read_text()) for path in (tmp_path / "reports").iterdir()}
    report = reports.pop(f"{process.pid}.json")
    assert report["chip"].startswith("Atlas ")
    assert report["calls"]["aten::sum"] == 1 and report["waits"] == {"aten::_local_scalar_dense": 1}
    assert len(report["refused"]) == 1 and "has no row in the table of" in report["refused"][0]
    assert report["examples"]["aten::add.Tensor"] == ["self=float32 [2, 3], other=1, alpha=1"]
    assert report["graphs"] == {"captures": 0, "replays": 0, "updates": 0}
    (killed,) = reports.values()  # its forked child, which had no time to say goodbye
    assert killed["calls"] == {"aten::ones": 1, "aten::mul_.Tensor": 1}


def test_another_chip_is_refused_by_name() -> None:
    process = start("", NPU_EMULATOR_CHIP="A4")
    _, errors = process.communicate(timeout=TIMEOUT)
    assert "NPU_EMULATOR_CHIP is 'A4'; it can be A2 or 310P." in errors


def test_the_generator_makes_what_was_built_again(tmp_path: Path) -> None:
    """The same wheels give the same C, each symbol once, and the same libraries."""
    from npu_emulator import stubs
    from npu_emulator.settings import BUILT

    names = stubs.generate(Path(sysconfig.get_paths()["purelib"]), tmp_path)
    source = (tmp_path / "stubs.c").read_text()
    assert source == (BUILT / "stubs.c").read_text()
    defined = re.findall(r'__asm__\("(\w+)"\)', source)
    assert len(defined) == len(set(defined)) > 1000
    assert names == (BUILT / "libraries.txt").read_text().split()
    assert all((tmp_path / name).is_file() for name in names)
