# SPDX-License-Identifier: Apache-2.0
"""transformers' config of the model, read from any of the three forms of config.json."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig
from transformers.models.glm4v.configuration_glm4v import Glm4vConfig as TransformersGlm4vConfig

from vllm_glm41v_npu.checkpoint.config import Json, normalise


class Glm4vConfig(TransformersGlm4vConfig):
    """transformers' config of the model, from any of the three forms.

    It keeps the name of its base, by which transformers finds the classes that go with it.
    """

    @classmethod
    def from_dict(cls, config_dict: Json, **kwargs: Any) -> Any:
        """Return the config that config.json describes.

        Raises:
            ConfigError: A key is missing or contradicts another.
        """
        name = kwargs.get("name_or_path") or config_dict.get("_name_or_path")
        source = f"{name}/config.json" if name else "config.json"
        return super().from_dict(normalise(config_dict, source), **kwargs)


def register_config() -> None:
    """Make `AutoConfig` read `model_type` glm4v through `Glm4vConfig`.

    vLLM, the tokenizer and the network then all see the same object.
    """
    AutoConfig.register(Glm4vConfig.model_type, Glm4vConfig, exist_ok=True)
