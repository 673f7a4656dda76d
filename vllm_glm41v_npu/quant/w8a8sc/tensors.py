# SPDX-License-Identifier: Apache-2.0
"""The tensors of several safetensors files, one in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from vllm_glm41v_npu.checkpoint.folder import Checkpoint
from vllm_glm41v_npu.quant.w8a8sc.split import is_norm_bias


class Tensors:
    """Tensors by their names in the files, in the order of the names.

    A file is opened for each tensor: the pages of one that stays open count as this process's.

    Args:
        places: Name to the file that holds it.
    """

    def __init__(self, places: dict[str, Path]) -> None:
        self._places = dict(sorted(places.items()))

    @classmethod
    def of_checkpoint(cls, folder: Path) -> Tensors:
        """Those of the files that vLLM would load."""
        tensors = Checkpoint(folder).tensors
        return cls({name: folder / tensor.file for name, tensor in tensors.items()})

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> torch.Tensor:
        with safe_open(self._places[name], framework="pt") as file:
            return file.get_tensor(name)

    def items(self, norm_biases: bool) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors; those of RMSNorms' biases where they are wanted."""
        for name in self:
            if norm_biases or not is_norm_bias(name):
                yield name, self[name]
