# SPDX-License-Identifier: Apache-2.0
"""The float checkpoint that is read: its config and its tensors, one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from vllm_glm41v_npu.checkpoint.config import ConfigError
from vllm_glm41v_npu.checkpoint.description import find as find_description
from vllm_glm41v_npu.checkpoint.folder import FLOATS, Checkpoint
from vllm_glm41v_npu.checkpoint.names import COMPUTED_SUFFIXES, disk_name, network_name
from vllm_glm41v_npu.processing.hf_config import Glm4vConfig
from vllm_glm41v_npu.quant.quantizer.plan import QuantizerError


@dataclass(frozen=True)
class Entry:
    """A tensor's place, dtype and shape."""

    file: str
    disk_name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class Source:
    """The float checkpoint in `folder`; names are as transformers writes them now.

    Raises:
        QuantizerError: It has no config or no weights, is quantized already, or a weight file is
            missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, Any] = {}
        checkpoint = Checkpoint(folder)
        if checkpoint.config is None:
            raise QuantizerError(
                f"{folder / 'config.json'} is missing or holds no JSON object; give the folder of "
                "a checkpoint."
            )
        self.settings = checkpoint.config
        if find_description(folder) or checkpoint.quantization_config:
            raise QuantizerError(f"{folder} is quantized already; give the float checkpoint.")
        try:
            self.config = Glm4vConfig.from_dict(dict(self.settings))
        except ConfigError as error:
            raise QuantizerError(f"{folder}: {error}") from error
        self.entries = self._entries(checkpoint)

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor as it is on disk, mapped and not copied where the system allows it."""
        entry = self.entries[name]
        if entry.file not in self._open:
            self._open[entry.file] = safe_open(self.folder / entry.file, framework="pt")
        return self._open[entry.file].get_tensor(entry.disk_name)

    def fill(self, module: nn.Module, prefix: str) -> None:
        """Give `module` its weights in float32; `prefix` goes before their names."""
        state = {name: self.read(prefix + name).float() for name, _ in module.named_parameters()}
        module.load_state_dict(state, assign=True)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Check that a tensor is there.

        Raises:
            QuantizerError: It is missing or has another shape.
        """
        entry = self.entries.get(name)
        if entry is None or entry.shape != shape:
            found = "is missing" if entry is None else f"has shape {list(entry.shape)}"
            raise QuantizerError(
                f"{self.folder}: {name!r} {found}; config.json demands {list(shape)}. Check that "
                "the weights and the config belong together."
            )

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of most of the weights."""
        sizes: dict[torch.dtype, int] = {}
        for entry in self.entries.values():
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + torch.Size(entry.shape).numel()
        return max(sizes, key=lambda dtype: sizes[dtype])

    def _entries(self, checkpoint: Checkpoint) -> dict[str, Entry]:
        for file, problem in checkpoint.bad_files.items():
            raise QuantizerError(f"{self.folder / file} {problem}; download it again.")
        if not checkpoint.tensors:
            raise QuantizerError(
                f"{self.folder} has no *.safetensors file; save the checkpoint as safetensors."
            )
        entries = {}
        for name, tensor in checkpoint.tensors.items():
            if name.endswith(COMPUTED_SUFFIXES):
                continue
            if tensor.dtype not in FLOATS:
                raise QuantizerError(
                    f"{self.folder / tensor.file}: {name!r} is {tensor.dtype}, but a float "
                    f"checkpoint holds {', '.join(FLOATS)} only. Give the float checkpoint."
                )
            dtype = getattr(torch, FLOATS[tensor.dtype])
            entries[disk_name(network_name(name))] = Entry(tensor.file, name, dtype, tensor.shape)
        return entries
