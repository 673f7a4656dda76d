# SPDX-License-Identifier: Apache-2.0
"""Every rank's tensors from shards that vllm-ascend saved after loading W8A8S on an Atlas 310P.

`NPUWorker310.save_sharded_state` writes `model-rank-N-part-0.safetensors` for each rank, with the
parameters' names, and parameters_type_map.json.
"""

from __future__ import annotations

from pathlib import Path

from vllm_glm41v_npu.checkpoint.folder import read_header
from vllm_glm41v_npu.quant.w8a8sc.split import ShardingError, Sink, is_norm_bias, rank_bias
from vllm_glm41v_npu.quant.w8a8sc.tensors import Tensors

TYPE_MAP = "parameters_type_map.json"
ANY_RANK = "model-rank-*-part-*.safetensors"
MOTION = "visual.patch_embed.motion.weight"
"""A parameter that this network has, and vLLM's own class has not."""

SAVE_AGAIN = "Save it again, or give the W8A8S checkpoint itself, which needs no saved shards."


def is_saved(folder: Path) -> bool:
    """Whether `folder` holds shards that vLLM saved, and not a checkpoint."""
    return any(folder.glob(ANY_RANK))


def shard_saved(folder: Path, tp_size: int, sink: Sink) -> bool:
    """Give `sink` the tensors of all ranks.

    Args:
        folder: Where vLLM saved the shards.
        tp_size: Number of ranks, as when they were saved.
        sink: What takes the tensors.

    Returns:
        As `checkpoint.shard_checkpoint`.

    Raises:
        ShardingError: They are for another number of ranks, or of vLLM's own class.
    """
    if not (folder / TYPE_MAP).exists():
        raise ShardingError(
            f"{folder} holds shards but no {TYPE_MAP}, which vllm-ascend saves with them: they are "
            f"incomplete, or compressed already. {SAVE_AGAIN}"
        )
    ranks = {int(path.name.split("-")[2]) for path in folder.glob(ANY_RANK)}
    if ranks != set(range(tp_size)):
        listed = ", ".join(map(str, sorted(ranks)))
        raise ShardingError(
            f"{folder} holds shards of the ranks {listed}; for --tp {tp_size} they have to be 0 to "
            f"{tp_size - 1}. Give the --tp that they were saved with, or save them again."
        )
    shards = [_read(folder, rank) for rank in range(tp_size)]
    for rank, tensors in enumerate(shards):
        _check_layout(tensors, rank, folder)
    biased = any(shards[0][name].any() for name in filter(is_norm_bias, shards[0]))
    for rank, tensors in enumerate(shards):
        for name, tensor in tensors.items(norm_biases=biased):
            layer, _, suffix = name.rpartition(".")
            bias = suffix == "quant_bias"
            sink(rank, name, rank_bias(layer, tensor, rank) if bias else tensor)
    return biased


def _read(folder: Path, rank: int) -> Tensors:
    """The tensors of one rank."""
    places = {
        name: path
        for path in sorted(folder.glob(f"model-rank-{rank}-part-*.safetensors"))
        for name in read_header(path)
    }
    return Tensors(places)


def _check_layout(tensors: Tensors, rank: int, folder: Path) -> None:
    """Raises ShardingError where another class, with other rotary rows, saved the shard."""
    if MOTION not in tensors:
        raise ShardingError(
            f"The shard of rank {rank} in {folder} has no {MOTION}: this network did not save it. "
            "vLLM's own class has its rotary rows in another order and its patch embedding in "
            f"another form. {SAVE_AGAIN}"
        )
