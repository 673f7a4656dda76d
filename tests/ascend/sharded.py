# SPDX-License-Identifier: Apache-2.0
"""One rank of a network on the emulated Atlas 310P, loaded and saved with no engine around it.

Run as a program, once for each rank at the same time. `save` writes what vllm-ascend saves for each
of some checkpoints, one after the other.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def save(tp_size: int, port: int, folders: list[tuple[Path, str, Path]]) -> None:
    """Load checkpoints, each with its load format, and save every rank's shard of them.

    Raises:
        ChildProcessError: A rank failed.
    """
    arguments = [str(part) for folder in folders for part in folder]
    command = [sys.executable, "-m", "tests.ascend.sharded", str(tp_size), str(port)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(tp_size)
    ]
    said = [process.communicate(timeout=300)[0] for process in ranks]
    for rank, process in enumerate(ranks):
        if process.returncode != 0:
            raise ChildProcessError(f"rank {rank}:\n{said[rank][-4000:]}")


# ---- In the process of one rank


def _start(config: Any, rank: int, tp_size: int, port: int) -> None:
    import torch
    from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
    from vllm_ascend.utils import register_ascend_customop

    torch.npu.set_device(rank)
    register_ascend_customop(config)
    address = f"tcp://127.0.0.1:{port}"
    init_distributed_environment(tp_size, rank, address, rank, "hccl")
    ensure_model_parallel_initialized(tp_size, 1)


def main(tp_size: int, port: int, rank: int, arguments: list[str]) -> None:
    from npu_emulator import emulator

    emulator.install()
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model_loader

    for turn, (source, load_format, out) in enumerate(
        zip(arguments[::3], arguments[1::3], arguments[2::3], strict=True)
    ):
        config = EngineArgs(
            source,
            dtype="float16",
            quantization="ascend",
            load_format=load_format,
            enforce_eager=True,
            max_model_len=512,
            tensor_parallel_size=tp_size,
        ).create_engine_config()
        with set_current_vllm_config(config):
            if turn == 0:
                _start(config, rank, tp_size, port)
            loader = get_model_loader(config.load_config)
            network = loader.load_model(vllm_config=config, model_config=config.model_config)
        _save(network, Path(out), rank, config.quant_config)


def _save(network: Any, folder: Path, rank: int, quant_config: Any) -> None:
    from vllm_ascend._310p.sharded_state_loader_310p import ShardedStateLoader310

    folder.mkdir(exist_ok=True)
    ShardedStateLoader310.save_model(network, str(folder))
    if rank == 0:
        ShardedStateLoader310.generate_quant_description(network, str(folder), quant_config)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    sys.stdout.flush()
    os._exit(0)  # the other rank may be gone, and the process group would wait for it
