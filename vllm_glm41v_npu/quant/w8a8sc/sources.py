# SPDX-License-Identifier: Apache-2.0
"""The two sources of W8A8S tensors: a checkpoint, or shards that vllm-ascend saved.

vllm-ascend saves them after loading W8A8S on an Atlas 310P: `NPUWorker310.save_sharded_state`
writes `model-rank-N-part-0.safetensors` for each rank, with the parameters' names, and
parameters_type_map.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from vllm_glm41v_npu.checkpoint.folder import Checkpoint, read_header
from vllm_glm41v_npu.checkpoint.names import NETWORK, QUANT_BIAS, is_added_bias, split_name
from vllm_glm41v_npu.quant.w8a8sc.ranks import ShardingError, Sink, rank_bias

TYPE_MAP = "parameters_type_map.json"
ANY_RANK = "model-rank-*-part-*.safetensors"
MOTION = f"{NETWORK.vision}patch_embed.motion.weight"
"""A parameter that this network has, and vLLM's own class has not."""

SAVE_AGAIN = "Save it again, or give the W8A8S checkpoint itself, which needs no saved shards."


class Tensors:
    """Tensors of several files by their names, in the order of the names, one at a time.

    A file is opened for each tensor: the pages of one that stays open count as this process's.

    Args:
        places: Name to the file that holds it.
    """

    def __init__(self, places: dict[str, Path]) -> None:
        self._places = dict(sorted(places.items()))

    @classmethod
    def of_checkpoint(cls, folder: Path) -> Tensors:
        """Return those of the files that vLLM would load."""
        tensors = Checkpoint(folder).tensors
        return cls({name: folder / tensor.file for name, tensor in tensors.items()})

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> torch.Tensor:
        with safe_open(self._places[name], framework="pt") as file:
            return file.get_tensor(name)

    def biased_norms(self) -> bool:
        """Return whether a bias that msModelSlim has added to an RMSNorm is not zero.

        Where all are zero they are left out; else every RMSNorm needs one, as vllm-ascend gives
        one to each or to none.
        """
        return any(bool(self[name].any()) for name in filter(is_added_bias, self._places))

    def items(self, norm_biases: bool) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield names and tensors; added biases of RMSNorms where they are wanted."""
        for name in self._places:
            if norm_biases or not is_added_bias(name):
                yield name, self[name]


def is_saved(folder: Path) -> bool:
    """Return whether `folder` holds shards that vLLM saved, and not a checkpoint."""
    return any(folder.glob(ANY_RANK))


def shard_saved(folder: Path, tp_size: int, sink: Sink) -> bool:
    """Give `sink` the tensors of all ranks.

    Args:
        folder: Where vLLM saved the shards.
        tp_size: Number of ranks, as when they were saved.
        sink: What takes the tensors.

    Returns:
        Whether RMSNorms have biases.

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
    biased = shards[0].biased_norms()
    for rank, tensors in enumerate(shards):
        for name, tensor in tensors.items(norm_biases=biased):
            layer, suffix = split_name(name)
            sink(rank, name, rank_bias(layer, tensor, rank) if suffix == QUANT_BIAS else tensor)
    return biased


def _read(folder: Path, rank: int) -> Tensors:
    """Return the tensors of one rank."""
    places = {
        name: path
        for path in sorted(folder.glob(f"model-rank-{rank}-part-*.safetensors"))
        for name in read_header(path)
    }
    return Tensors(places)


def _check_layout(tensors: Tensors, rank: int, folder: Path) -> None:
    """Raise ShardingError where another class, with other rotary rows, saved the shard."""
    if MOTION not in tensors:
        raise ShardingError(
            f"The shard of rank {rank} in {folder} has no {MOTION}: this network did not save it. "
            "vLLM's own class has its rotary rows in another order and its patch embedding in "
            f"another form. {SAVE_AGAIN}"
        )
