# SPDX-License-Identifier: Apache-2.0
"""The config of `--quantization ascend` on Ascend: vllm-ascend's, extended for this model.

Other models get vllm-ascend's config unchanged. For this model, vllm-ascend does not know which
layers are fused on disk (gate_up_proj is in the decoder, and is not in the vision tower); it gives
every RMSNorm a bias because the checkpoint has one LayerNorm with a bias; and some of its schemes
differ from the chips' documents.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

from vllm_glm41v_npu.backends import current_backend, resolve
from vllm_glm41v_npu.checkpoint.description import (
    COMPRESSED,
    FLOAT,
    Description,
    DescriptionError,
    read_description,
)
from vllm_glm41v_npu.checkpoint.names import is_norm_bias
from vllm_glm41v_npu.family import is_our_config

# Each chip's module registers a config under one name, and the last one counts: the other chip's
# may not be imported, and this one before `plugin` registers ours.
ModelSlimConfig: Any = resolve(current_backend().modelslim)


class Glm41vModelSlimConfig(ModelSlimConfig):
    """Chooses the scheme of each layer of a checkpoint in msModelSlim's format."""

    quant_description: dict[str, Any]
    description: Description

    def maybe_update_config(
        self, model_name: str, hf_config: Any = None, revision: str | None = None
    ) -> None:
        """Read the description, for this model in both forms and without biases of norms.

        If it names the bias of a norm, AscendRMSNorm makes a bias for every RMSNorm. An RMSNorm
        whose bias is not zero gets it when it is loaded; see models/norm_bias.py. Shards name
        biases only if some are not zero, so there they are kept.
        """
        if not is_our_config(hf_config):
            super().maybe_update_config(model_name, hf_config, revision)
            return
        # For MindIE's form vLLM has put config.json's entry here, which is no description.
        _, self.description = read_description(model_name, revision)
        biased = self.description.kind == COMPRESSED
        types = {
            name: kind
            for name, kind in self.description.types.items()
            if biased or not is_norm_bias(name)
        }
        self.quant_description = {**self.description.extras, **types}
        self._apply_extra_quant_adaptations()
        self._add_kvcache_quant_metadata()

    def get_quant_method(
        self, layer: torch.nn.Module, prefix: str, tid2eid: Any = None
    ) -> QuantizeMethodBase | None:
        """Return vllm-ascend's method, with this package's scheme in this model's linear layers.

        Raises:
            DescriptionError: The layer is not described, or has a type that the chip does not run.
        """
        ours = is_our_config(get_current_vllm_config().model_config.hf_config)
        if not ours or not isinstance(layer, LinearBase):
            return super().get_quant_method(layer, prefix, tid2eid)

        from vllm_ascend.ops.linear import AscendUnquantizedLinearMethod
        from vllm_ascend.quantization.method_adapters import AscendLinearMethod

        kind = self.description.layer_type(prefix)
        if kind == FLOAT:
            return AscendUnquantizedLinearMethod()
        schemes = resolve(current_backend().schemes)
        if kind not in schemes:
            raise DescriptionError(
                f"{self.description.file} gives {prefix} the type {kind!r}; "
                f"{current_backend().name} computes {', '.join((FLOAT, *schemes))}. Quantize again "
                "to one of them."
            )
        return AscendLinearMethod(schemes[kind]())
