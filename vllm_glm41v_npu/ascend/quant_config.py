# SPDX-License-Identifier: Apache-2.0
"""`--quantization ascend` on Ascend: vllm-ascend's config, with this model's layers chosen here.

Other models get what vllm-ascend gives them. For this model vllm-ascend does not know which layers
are fused on disk (gate_up_proj is in the decoder, and not in the vision tower), it gives every
RMSNorm a bias because the checkpoint has one LayerNorm with a bias, and some of its schemes differ
from what the chips document.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

from vllm_glm41v_npu.backends import current_backend, resolve
from vllm_glm41v_npu.checkpoint.config import MODEL_TYPES
from vllm_glm41v_npu.checkpoint.description import (
    COMPRESSED,
    FLOAT,
    Description,
    DescriptionError,
    read_description,
)
from vllm_glm41v_npu.checkpoint.names import is_norm_bias

# Each chip's module registers a config under one name, and the last one counts: the other chip's
# may not be imported, and this one before `plugin` registers ours.
ModelSlimConfig: Any = resolve(str(current_backend().modelslim))


class Glm41vModelSlimConfig(ModelSlimConfig):
    """What runs each layer of a checkpoint in msModelSlim's format."""

    quant_description: dict[str, Any]
    description: Description

    def maybe_update_config(
        self, model_name: str, hf_config: Any = None, revision: str | None = None
    ) -> None:
        """Read the description; this model's in either form, without biases of norms.

        Where it names a bias of a norm, AscendRMSNorm makes a parameter for each RMSNorm. RMSNorms
        whose bias is not zero get it when it is loaded: see models/norm_bias.py. Shards name such
        biases where there are some, and nowhere else.
        """
        if getattr(hf_config, "model_type", None) not in MODEL_TYPES:
            super().maybe_update_config(model_name, hf_config, revision)
            return
        # What config.json says of the form for MindIE is in here, and is no description.
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
        """vllm-ascend's method, with a scheme of ours for this model's linear layers.

        Raises:
            DescriptionError: The layer is not described, or has a type that the chip does not run.
        """
        model_type = get_current_vllm_config().model_config.hf_config.model_type
        if model_type not in MODEL_TYPES or not isinstance(layer, LinearBase):
            return super().get_quant_method(layer, prefix, tid2eid)

        from vllm_ascend.ops.linear import AscendUnquantizedLinearMethod
        from vllm_ascend.quantization.method_adapters import AscendLinearMethod

        kind = self.description.layer_type(prefix)
        if kind == FLOAT:
            return AscendUnquantizedLinearMethod()
        schemes = resolve(str(current_backend().schemes))
        if kind not in schemes:
            raise DescriptionError(
                f"{self.description.file} gives {prefix} the type {kind!r}; "
                f"{current_backend().name} computes {', '.join((FLOAT, *schemes))}. Quantize again "
                "to one of them."
            )
        return AscendLinearMethod(schemes[kind]())
