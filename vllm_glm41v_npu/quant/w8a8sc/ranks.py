# SPDX-License-Identifier: Apache-2.0
"""Every rank's tensors from a checkpoint with its names on disk, with no engine and no NPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vllm_glm41v_npu.models.weights import WeightLoader
from vllm_glm41v_npu.processing.grid import PatchGeometry
from vllm_glm41v_npu.processing.pixel_settings import ImageSettings
from vllm_glm41v_npu.quant.w8a8sc.split import Sink, Splitter, check_split, is_norm_bias
from vllm_glm41v_npu.quant.w8a8sc.tensors import Tensors


def shard_checkpoint(folder: Path, config: Any, tp_size: int, sink: Sink) -> bool:
    """Give `sink` the tensors of all ranks.

    In memory are one tensor of the source and the parts of a fused layer. Floats keep the dtype
    they have on disk, which may be wider than the parameter's: loading rounds them, here as there.

    Args:
        folder: A W8A8S checkpoint of msModelSlim's, validated before.
        config: Its config.
        tp_size: Number of ranks.
        sink: What takes the tensors.

    Returns:
        Whether RMSNorms have biases. Those that msModelSlim writes are left out where all are
        zero; else every RMSNorm has one, as vllm-ascend gives one to each or to none.

    Raises:
        ShardingError: So many ranks cannot share it.
        WeightError: A tensor is unknown, misshapen, or missing.
    """
    check_split(config, tp_size)
    tensors = Tensors.of_checkpoint(folder)
    biased = any(tensors[name].any() for name in filter(is_norm_bias, tensors))
    splitter = Splitter(config, tp_size, sink, biased)
    _Converter(folder, config, splitter).load(tensors.items(norm_biases=biased))
    splitter.finish()
    return biased


class _Converter(WeightLoader):
    """The checks and the layouts of loading, with a splitter in the network's place."""

    def __init__(self, folder: Path, config: Any, splitter: Splitter) -> None:
        geometry = PatchGeometry.from_vision_config(config.vision_config)
        settings = ImageSettings.from_pretrained(str(folder), None, geometry)
        super().__init__(nn.Module(), config, settings, quantized=True)
        self.splitter = splitter

    def _copy(self, params: dict[str, nn.Parameter], name: str, tensor: torch.Tensor) -> set[str]:
        self.splitter.add(name, tensor)
        return {name}
