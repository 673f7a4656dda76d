# SPDX-License-Identifier: Apache-2.0
"""What the Makefile sets, for a bare `pytest`: vLLM reads it at import, in all its processes."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
# The engine runs in the test's own process; tests of servers and of several devices start more.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
# torch_npu does not start in a process forked from one that has used an NPU.
if importlib.util.find_spec("vllm_ascend"):
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
# Half of an engine's start on a CPU is vLLM compiling its sampler, even with enforce_eager; tests
# of what is compiled take the fixture `compiler`.
else:
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
# More threads than the tiny networks need would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("VLLM_PLUGINS", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that names no lane runs on the CPU."""
    for item in items:
        if not any(item.get_closest_marker(lane) for lane in ("cpu", "ascend", "npu")):
            item.add_marker(pytest.mark.cpu)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.compile compiles, in this process and in those that the test starts."""
    import torch

    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("there is no C++ compiler (g++)")
    monkeypatch.delenv("TORCH_COMPILE_DISABLE", raising=False)
    with torch._dynamo.config.patch(disable=False):
        yield


@pytest.fixture(scope="session")
def written_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a folder by its name unless another process of this run has; returns it.

    The folder that `write` is given is not there yet. Nobody may change what it has written.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    shared = shared / "checkpoints"
    shared.mkdir(exist_ok=True)

    def ensure(name: str, write: Callable[[Path], object]) -> Path:
        folder = shared / name
        with FileLock(shared / f"{name}.lock"):
            if not folder.exists():
                partial = shared / f"{name}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                write(partial)
                partial.rename(folder)
        return folder

    return ensure


@pytest.fixture(scope="session")
def checkpoint(written_once: Callable[..., Path]) -> Callable[[str], Path]:
    """The folder of a checkpoint by its name: "tiny", or a random one's, written when first asked.

    On Ascend, "tiny" has the head size that its kernels take, and computes the same.
    """
    from tests.checkpoints import CHIP_SHAPES, COMPRESSED_SHAPE, SHAPES, TINY, write_checkpoint
    from tests.lane import ON_CPU
    from tests.widen import write_wide_tiny

    shapes = {shape.name: shape for shape in (*SHAPES, *CHIP_SHAPES, COMPRESSED_SHAPE)}

    def write(name: str) -> Path:
        if name == "tiny":
            return TINY if ON_CPU else written_once("wide-tiny", write_wide_tiny)
        return written_once(name, lambda folder: write_checkpoint(shapes[name], folder))

    return functools.cache(write)


@pytest.fixture(scope="session")
def quantized(
    checkpoint: Callable[[str], Path], written_once: Callable[..., Path]
) -> Callable[..., Path]:
    """The folder of a quantized checkpoint by type, name of the float one, and dtype."""
    from tests.quant.making import write_quantized

    def write(kind: str, name: str = "tiny", dtype: str = "float16") -> Path:
        source = checkpoint(name)
        return written_once(
            f"{name}-{kind}-{dtype}", lambda folder: write_quantized(source, folder, kind, dtype)
        )

    return functools.cache(write)
