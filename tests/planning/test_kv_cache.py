# SPDX-License-Identifier: Apache-2.0
"""Sizes of the KV cache on CPUs, and the memory that a host, a group or a node allows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import TINY
from tests.doctor.machines import GIB, write_memory, write_weights
from vllm_glm41v_npu.planning import kv_cache
from vllm_glm41v_npu.planning.host_memory import Memory, read
from vllm_glm41v_npu.planning.kv_cache import KV_SPACE, NoRoom, choose_kv_cache
from vllm_glm41v_npu.planning.model_size import PUBLISHED_TEXT, PUBLISHED_VISION

HUB_NAME = "zai-org/GLM-4.1V-9B-Thinking"
NO_HUB = {"HF_HOME": "/nowhere"}
BFLOAT16, FLOAT32 = "flags : avx512_bf16\n", "flags : avx2\n"


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """The published checkpoint's config and as many weights, of no size on the disk."""
    folder = tmp_path / "real"
    folder.mkdir()
    config = {"model_type": "glm4v", "dtype": "bfloat16", "tie_word_embeddings": False}
    parts = {"text_config": PUBLISHED_TEXT, "vision_config": PUBLISHED_VISION}
    (folder / "config.json").write_text(json.dumps(config | parts))
    write_weights(folder / "model.safetensors", {"model.layers.0.w": ("BF16", [10_292_777_472])})
    return folder


def chosen(root: Path, model: Path | str, **options: Any) -> int:
    cache = choose_kv_cache(str(model), environ={}, root=root, on_cpu=True, **options)
    assert cache is not None
    assert f"{cache.size / GIB:.1f} GiB" in cache.sentence
    assert KV_SPACE in cache.sentence
    return cache.size


def machine(root: Path, available: int, flags: str = BFLOAT16) -> Path:
    write_memory(root, total=2 * available, available=available)
    (root / "proc/cpuinfo").write_text(flags)
    return root


TOKEN = 40 << 10
"""Bytes of a token of the published model, in bfloat16: 40 layers, 2 heads of 128, keys, values."""


def test_room_for_several_requests(real: Path, tmp_path: Path) -> None:
    """Guards the size: enough for so many requests, more with float32, and not all there is."""
    whole = (8192 + 128) * TOKEN
    root = machine(tmp_path, 200)
    assert 8 * whole <= chosen(root, real, length=8192) <= 8 * whole + (1 << 20)
    assert 4 * whole <= chosen(root, real, length=8192, sequences=4) <= 4 * whole + (1 << 20)
    assert chosen(root, real, length=8192, dtype="float32") >= 16 * whole
    assert chosen(root, real, length=8192, devices=2) >= 4 * whole
    assert chosen(root, real) >= 8 * 65536 * TOKEN  # the model's own length


def test_where_memory_is_short(real: Path, tmp_path: Path) -> None:
    """Guards a size that leaves the weights, the processes and other programs their part."""
    weights = 2 * 10_292_777_472
    size = chosen(machine(tmp_path, 30), real)
    assert 65536 * TOKEN < size < 30 * GIB - weights - 2 * GIB
    tight = chosen(machine(tmp_path, 28), real)
    assert 65536 * TOKEN < tight < size
    each = chosen(machine(tmp_path, 40), real, devices=2)  # ranks share the same host
    assert 2 * each < 40 * GIB - weights - 2 * GIB


@pytest.mark.parametrize(("available", "flags"), [(24, BFLOAT16), (10, BFLOAT16), (30, FLOAT32)])
def test_a_model_that_does_not_fit(real: Path, tmp_path: Path, available: int, flags: str) -> None:
    """Guards a sentence with all numbers, before anything is loaded."""
    with pytest.raises(NoRoom) as refused:
        chosen(machine(tmp_path, available, flags), real)
    message = str(refused.value)
    assert f"{available}.0 GiB of memory are free" in message
    assert ("38.3 GiB in float32" if flags == FLOAT32 else "19.2 GiB in bfloat16") in message
    assert "a request of 65536 tokens takes" in message
    if available == 24:  # a shorter one fits, and the sentence is right about it
        length = int(message.split("a length of at most ")[1].split(",")[0])
        assert 10_000 < length < 65536
        assert chosen(tmp_path, real, length=length)


def test_what_is_not_ours_to_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the user's own size, NPUs, and checkpoints and hosts that cannot be read."""
    root = machine(tmp_path, 60)
    assert choose_kv_cache(str(TINY), environ={KV_SPACE: "4"}, root=root, on_cpu=True) is None
    assert choose_kv_cache(str(TINY), environ={}, root=root, on_cpu=False) is None
    assert choose_kv_cache("/no/such/folder", environ={}, root=root, on_cpu=True) is None
    (root / "other").mkdir()
    (root / "other/config.json").write_text('{"model_type": "llama"}')
    assert choose_kv_cache(str(root / "other"), environ={}, root=root, on_cpu=True) is None
    assert choose_kv_cache(str(TINY), environ={}, root=root / "empty", on_cpu=True) is None
    monkeypatch.setattr(kv_cache, "starts_on_cpu", lambda environ: False)
    assert choose_kv_cache(str(TINY), environ={}, root=root) is None


def test_a_model_that_is_not_downloaded(tmp_path: Path, real: Path) -> None:
    """Guards the first start: the published sizes count until there is a folder."""
    root = machine(tmp_path, 100)
    name = "no-such-user/GLM-4.1V-9B-Thinking"
    assert chosen(root, name, length=4096) == chosen(root, real, length=4096)


def test_a_small_model_still_keeps_prompts(tmp_path: Path) -> None:
    """Guards a cache of a few blocks, where there is a GiB to spare."""
    assert chosen(machine(tmp_path, 60), TINY) == GIB


def test_neither_torch_nor_vllm_is_loaded() -> None:
    """Guards `glm41v serve`, which has to say at once what does not fit."""
    program = (
        "import sys; from vllm_glm41v_npu.planning.kv_cache import choose_kv_cache as choose\n"
        f"choose({str(TINY)!r}, environ={{}})\n"
        "assert not {'torch', 'vllm', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# --- the host ---


def write(path: Path, text: str | int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


GROUPS = {
    "version 2, a container's own": ("", "sys/fs/cgroup", 2),
    "version 2, a service": ("0::/system.slice/glm41v.service", "sys/fs/cgroup/system.slice", 2),
    "version 2, a folder that is not seen": ("0::/../outside", "sys/fs/cgroup", 2),
    "version 1, a container's own": ("4:memory:/docker/abc", "sys/fs/cgroup/memory", 1),
    "version 1, a group": ("2:cpu,memory:/users/me", "sys/fs/cgroup/memory/users", 1),
    "both": ("5:memory:/a\n0::/b", "sys/fs/cgroup/memory/a", 1),
}


@pytest.mark.parametrize("case", GROUPS)
def test_limits_of_groups(tmp_path: Path, case: str) -> None:
    """Guards against taking the host's memory where a group above has less, or has used it."""
    lines, folder, version = GROUPS[case]
    write_memory(tmp_path, total=64, available=60)
    write(tmp_path / "proc/self/cgroup", lines)
    limit, used, cache = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    write(tmp_path / folder / limit, 16 * GIB)
    assert read(tmp_path) == Memory(16 * GIB, 16 * GIB)
    write(tmp_path / folder / used, 10 * GIB)
    assert read(tmp_path) == Memory(16 * GIB, 6 * GIB)
    write(tmp_path / folder / "memory.stat", f"anon 5\n{cache} {4 * GIB}\nactive_file 7")
    assert read(tmp_path) == Memory(16 * GIB, 10 * GIB)
    for none in ("max", (1 << 63) - 4096):
        write(tmp_path / folder / limit, none)
        memory = read(tmp_path)
        assert memory is not None
        assert memory.total == 64 * GIB


def test_the_node_of_the_first_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards hosts of several NUMA nodes: vLLM stays on one, and counts its memory alone."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {9, 5})
    write_memory(tmp_path, total=64, available=60)
    (tmp_path / "sys/devices/system/cpu/cpu5/node1").mkdir(parents=True)
    amounts = {"MemTotal": 32, "MemFree": 3, "Active(anon)": 20, "Active(file)": 4}
    amounts |= {"Inactive(file)": 2, "SReclaimable": 1}
    lines = [f"Node 1 {name}: {gib << 20} kB" for name, gib in amounts.items()]
    write(tmp_path / "sys/devices/system/node/node1/meminfo", "\n".join(lines))
    assert read(tmp_path) == Memory(32 * GIB, 10 * GIB)
