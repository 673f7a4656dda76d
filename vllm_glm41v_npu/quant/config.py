# SPDX-License-Identifier: Apache-2.0
"""What `--quantization ascend` is on the CPU; on Ascend that name belongs to vllm-ascend."""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.quantization.base_config import (
    QuantizationConfig,
    QuantizeMethodBase,
)

from vllm_glm41v_npu.quant.description import (
    DESCRIPTION,
    FLOAT,
    METHOD,
    Description,
    DescriptionError,
)
from vllm_glm41v_npu.quant.recognition import local_folder


class AscendConfig(QuantizationConfig):
    """What runs each layer of a checkpoint in msModelSlim's format."""

    def __init__(self) -> None:
        super().__init__()
        self.on_disk: Description | None = None
        self.description: Description | None = None

    def get_name(self) -> Any:
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.float16, torch.bfloat16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 0  # of a GPU

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []  # MindIE's file is named after its type: `maybe_update_config` finds it

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> AscendConfig:
        """From config.json's `quantization_config`; MindIE's form has nothing there to know."""
        return cls()

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: dict[str, Any], user_quant: str | None, hf_config: Any = None
    ) -> Any:
        """Take a `quantization_config` that names no method, as MindIE's form has it."""
        unnamed = hf_quant_cfg is not None and not hf_quant_cfg.get("quant_method")
        return METHOD if unnamed and user_quant == METHOD else None

    def maybe_update_config(
        self, model_name: str, hf_config: Any = None, revision: str | None = None
    ) -> None:
        """Read the description, now that vLLM says which model it is.

        Raises:
            DescriptionError: There is none, or it cannot be used.
        """
        self.on_disk = Description.read(local_folder(model_name, ["*.json"], revision))
        self.description = self.on_disk
        if self.on_disk is None:
            raise DescriptionError(
                f"--quantization {METHOD} needs {DESCRIPTION}, and {model_name} has none. Leave "
                "--quantization out for a float checkpoint, or copy the file there."
            )

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Call the described tensors as vLLM calls its layers."""
        if self.on_disk is not None:
            self.description = self.on_disk.renamed(
                lambda name: hf_to_vllm_mapper.apply_list([name])[0]
            )

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """None where nothing is quantised: attention, embeddings, the output projection.

        Raises:
            DescriptionError: The layer is not described, or has a type that the CPU does not run.
        """
        from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod

        from vllm_glm41v_npu.quant.linear import METHODS

        if not isinstance(layer, LinearBase):
            return None
        assert self.description is not None
        kind = self.description.layer_type(prefix)
        if kind == FLOAT:
            return UnquantizedLinearMethod()
        if kind not in METHODS:
            raise DescriptionError(
                f"{self.description.file} gives {prefix} the type {kind!r}; the CPU computes "
                f"{', '.join((FLOAT, *METHODS))}. Quantise again to one of them."
            )
        return METHODS[kind](kind)
