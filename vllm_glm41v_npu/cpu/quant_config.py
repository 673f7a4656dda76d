# SPDX-License-Identifier: Apache-2.0
"""The config of `--quantization ascend` on the CPU; on Ascend, ascend/quant_config.py has it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from vllm.model_executor.layers.quantization.base_config import (
    QuantizationConfig,
    QuantizeMethodBase,
)

from vllm_glm41v_npu.checkpoint.description import (
    COMPRESSED,
    DESCRIPTION,
    FLOAT,
    METHOD,
    RULES,
    Description,
    DescriptionError,
    read_description,
)
from vllm_glm41v_npu.family import is_our_config
from vllm_glm41v_npu.quant.w8a8sc.shards import Stored, stored_weights


class CpuModelSlimConfig(QuantizationConfig):
    """Chooses the method of each layer of a checkpoint in msModelSlim's format."""

    def __init__(self) -> None:
        super().__init__()
        self.folder: Path | None = None
        self.description: Description | None = None

    def get_name(self) -> Any:
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.float16, torch.bfloat16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 0  # a GPU's capability

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []  # MindIE's file is named after the type: `maybe_update_config` finds it

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CpuModelSlimConfig:
        """Make the config; config.json's `quantization_config` holds nothing that it needs."""
        return cls()

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: dict[str, Any], user_quant: str | None, hf_config: Any = None
    ) -> Any:
        """Accept a `quantization_config` that names no method, as MindIE's form has it."""
        unnamed = hf_quant_cfg is not None and not hf_quant_cfg.get("quant_method")
        return METHOD if unnamed and user_quant == METHOD else None

    def maybe_update_config(
        self, model_name: str, hf_config: Any = None, revision: str | None = None
    ) -> None:
        """Read the description, now that vLLM names the model.

        Raises:
            DescriptionError: There is none, it cannot be used, or the model is another.
        """
        if hf_config is not None and not is_our_config(hf_config):
            raise DescriptionError(
                f"{model_name} is of the model type {hf_config.model_type!r}; on a CPU "
                f"--quantization {METHOD} runs GLM-4.1V alone. Leave the option out, or use "
                "vllm-ascend on an NPU."
            )
        self.folder, self.description = read_description(model_name, revision)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """Return the layer's method; None for attention, embeddings and the output projection.

        Raises:
            DescriptionError: The layer is not described, or has a type that the CPU does not run.
        """
        from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod

        from vllm_glm41v_npu.cpu.int8_linear import METHODS, CompressedLinearMethod

        if not isinstance(layer, LinearBase):
            return None
        assert self.description is not None
        kind = self.description.layer_type(prefix)
        if kind == FLOAT:
            return UnquantizedLinearMethod()
        if kind == COMPRESSED:
            return CompressedLinearMethod(self._stored(prefix))
        if kind not in METHODS:
            raise DescriptionError(
                f"{self.description.file} gives {prefix} the type {kind!r}; the CPU computes "
                f"{', '.join((FLOAT, *METHODS))}. Quantize again to one of them."
            )
        return METHODS[kind](kind, RULES[kind])

    @property
    def quant_description(self) -> Mapping[str, str]:
        """Types of tensors by their names in the network; the name is vllm-ascend's."""
        return {} if self.description is None else self.description.types

    def _stored(self, prefix: str) -> Stored:
        found = self._compressed.get(prefix)
        if found is None:
            raise DescriptionError(
                f"{DESCRIPTION} gives {prefix} the type {COMPRESSED}, and no file of the shards "
                "has it. Copy the folder again."
            )
        return found

    @cached_property
    def _compressed(self) -> dict[str, Stored]:
        """This rank's compressed weights, by the names of their layers."""
        from vllm.distributed import get_tensor_model_parallel_rank

        assert self.folder is not None
        return stored_weights(self.folder, get_tensor_model_parallel_rank())
