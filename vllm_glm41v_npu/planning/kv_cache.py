# SPDX-License-Identifier: Apache-2.0
"""A size of the KV cache that fits the memory of a CPU's host. Imports no torch or vLLM.

Left to itself, vLLM's CPU backend takes 92 % of all memory for weights and cache, and does not
start where so much is not free.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from vllm_glm41v_npu.backends import cpu_backend, starts_on_cpu
from vllm_glm41v_npu.checkpoint.folder import FLOAT_BYTES, Checkpoint
from vllm_glm41v_npu.checks import resolved_dtype
from vllm_glm41v_npu.planning import host_memory
from vllm_glm41v_npu.planning.model_size import PUBLISHED_TEXT, Model

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

KV_SPACE = "VLLM_CPU_KVCACHE_SPACE"
"""vLLM's environment variable for the size of the cache on a CPU, in GiB."""

MIB = 1 << 20
PROCESSES = 2 << 30
"""Bytes for the server's processes beside weights and cache."""
LARGE_PICTURES = 0.1
"""The part of the weights' bytes that the vision tower takes for the largest pictures."""
SHARE = 0.75
"""The largest part of what is left that the cache takes; the rest stays for other programs."""
LEAST = 1 << 30
"""Bytes that the cache takes where they are there, as it also keeps prompts for later requests."""
BLOCK = 128
"""Tokens of a block of vLLM's cache on a CPU."""


class NoRoom(ValueError):
    """The model, and one request of the longest kind, do not fit; the message says what to do."""


class KVCache(NamedTuple):
    """A size of the cache, in bytes, and a sentence about it for the user."""

    size: int
    sentence: str


class Needs(NamedTuple):
    """The needs of a model, in bytes, and its longest request, in tokens."""

    weights: int
    token: int
    length: int
    dtype: str

    @property
    def request(self) -> int:
        """The cache of one request of the longest kind, whole blocks and one that is never used."""
        return (-(-self.length // BLOCK) + 1) * BLOCK * self.token


def choose_kv_cache(
    model: str,
    length: int | None = None,
    sequences: int = 8,
    dtype: str = "auto",
    devices: int = 1,
    environ: Mapping[str, str] = os.environ,
    root: Path = Path("/"),
    on_cpu: bool | None = None,
) -> KVCache | None:
    """Return a size of the cache for each device, for vLLM's `kv_cache_memory_bytes`.

    It is None where it is not ours to choose: on an NPU, where VLLM_CPU_KVCACHE_SPACE is set, and
    where the checkpoint or the host's memory cannot be read.

    Args:
        model: A folder, or a hub name; one that is not downloaded counts as GLM-4.1V-9B-Thinking.
        length: vLLM's `max_model_len`; the model's own if not given.
        sequences: Requests of this length that are to compute together, if there is room.
        dtype: vLLM's.
        devices: vLLM's `tensor_parallel_size`.
        environ: The environment that vLLM is started with.
        root: Where the system's files are.
        on_cpu: True where vLLM starts on the CPU; found from what is installed if not given.

    Raises:
        NoRoom: There is too little memory for one request.
    """
    memory = host_memory.read(root)
    on_cpu = starts_on_cpu(environ) if on_cpu is None else on_cpu
    if not on_cpu or environ.get(KV_SPACE) or memory is None:
        return None
    needs = _needs(model, length, dtype, devices, root)
    if needs is None:
        return None
    left = memory.available - PROCESSES - int(needs.weights * (1 + LARGE_PICTURES))
    left = max(0, left // devices)
    if left < needs.request:
        raise NoRoom(_refusal(memory, needs, left))
    wanted = max(sequences * needs.request, LEAST)
    size = max(needs.request, min(wanted, int(SHARE * left)))
    size = min(left, -(-size // MIB) * MIB)
    tokens = size // needs.token
    return KVCache(
        size,
        f"The KV cache takes {_gib(size)}, for {tokens:,} tokens: {_gib(memory.available)} of "
        f"memory are free, and the weights take {_gib(needs.weights)} in {needs.dtype}. Set "
        f"{KV_SPACE} (GiB) for another size.",
    )


def _needs(model: str, length: int | None, dtype: str, devices: int, root: Path) -> Needs | None:
    """Return the needs of a model; None where its config.json is not GLM-4.1V's."""
    backend = cpu_backend(root / "proc/cpuinfo")
    try:
        folder = _folder(model)
    except FileNotFoundError:
        return None
    if folder is None:
        network = Model.published()
        dtype = resolved_dtype(backend, "bfloat16", False) if dtype == "auto" else dtype
        weights = network.total * _float_bytes(dtype)
        most = PUBLISHED_TEXT["max_position_embeddings"]
    else:
        checkpoint = Checkpoint(folder)
        try:
            network = Model.read(folder)
        except ValueError:
            return None
        quantized = bool((checkpoint.quantization_config or {}).get("quant_method"))
        if dtype == "auto":
            dtype = resolved_dtype(backend, checkpoint.dtype, quantized)
        sizes = [tensor.size_in(dtype) for tensor in checkpoint.tensors.values()]
        weights = sum(sizes) or network.total * _float_bytes(dtype)
        most = network.text.max_position_embeddings
    token = network.kv_bytes(devices) * _float_bytes(dtype) // 2
    return Needs(weights, token, length or most, dtype)


def _folder(model: str) -> Path | None:
    """Return the folder of a checkpoint; None for a hub name that is not downloaded.

    Raises FileNotFoundError where it can be neither.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists() or not HUB_NAME.fullmatch(model):
        raise FileNotFoundError(model)
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def _float_bytes(dtype: str) -> int:
    return FLOAT_BYTES.get({"half": "float16", "float": "float32"}.get(dtype, dtype), 2)


def _refusal(memory: host_memory.Memory, needs: Needs, left: int) -> str:
    fits = left // needs.token // BLOCK * BLOCK - BLOCK
    shorter = f"give a length of at most {fits}, " if fits > 0 else ""
    return (
        f"The model does not fit: {_gib(memory.available)} of memory are free, the weights take "
        f"{_gib(needs.weights)} in {needs.dtype}, a request of {needs.length} tokens takes "
        f"{_gib(needs.request)}, and the processes take {_gib(PROCESSES)} and more. End other "
        f"programs, {shorter}or use a quantized checkpoint; to try it all the same, set {KV_SPACE} "
        "(GiB)."
    )


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
