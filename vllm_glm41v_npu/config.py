# SPDX-License-Identifier: Apache-2.0
"""The three forms of GLM-4.1V's config.json, read into one.

| written                     | text settings in | rope settings in                      |
|-----------------------------|------------------|---------------------------------------|
| July 2025                   | the top level    | `rope_scaling`, `rope_theta`, ...     |
| from 2025-10-25             | `text_config`    | `rope_scaling`, `rope_theta`, ...     |
| by transformers 5           | `text_config`    | `rope_parameters`                     |

`normalise` turns each into the last. `register_config` makes transformers read them through it, so
vLLM, the tokenizer and the network all see the same object.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig
from transformers.models.glm4v.configuration_glm4v import Glm4vConfig as TransformersGlm4vConfig

Json = dict[str, Any]

TEXT_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
TEXT_OPTIONS = (
    "attention_bias",
    "attention_dropout",
    "eos_token_id",
    "hidden_act",
    "initializer_range",
    "max_position_embeddings",
    "pad_token_id",
    "rms_norm_eps",
    "use_cache",
)
VISION_SIZES = (
    "depth",
    "hidden_size",
    "image_size",
    "intermediate_size",
    "num_heads",
    "out_hidden_size",
    "patch_size",
    "spatial_merge_size",
    "temporal_patch_size",
)
ROPE_TYPES = ("default", "linear", "yarn", "llama3")
ROPE_KEYS = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor")
TOKEN_IDS = {
    "image_token_id": 151343,
    "video_token_id": 151344,
    "image_start_token_id": 151339,
    "image_end_token_id": 151340,
    "video_start_token_id": 151341,
    "video_end_token_id": 151342,
}
"""The ids in the published checkpoint, which older files may leave out."""


class ConfigError(ValueError):
    """A key of config.json is missing or contradicts another."""


def normalise(config: Mapping[str, Any], source: str = "config.json") -> Json:
    """Any of the three forms to that of transformers 5; what is already in it stays as it is.

    Args:
        config: The parsed config.json.
        source: Where it came from, for error messages.

    Raises:
        ConfigError: A key is missing or contradicts another; the message names it and `source`.
    """
    result = dict(config)
    text = _text_part(result, source)
    vision = config.get("vision_config")
    if not isinstance(vision, Mapping):
        raise ConfigError(
            f"{source}: 'vision_config' is missing, so this is not a GLM-4.1V checkpoint (a text "
            "GLM-4 has none). Use the model's own config.json."
        )
    vision = {key: value for key, value in vision.items() if key != "model_type"}
    _require(text, TEXT_SIZES, source, "the text settings")
    _require(vision, VISION_SIZES, source, "'vision_config'")
    _check_sizes(text, vision, source)
    text["rope_parameters"] = _rope_parameters(text, source)
    for key in ROPE_KEYS[1:]:
        text.pop(key, None)
    return result | {
        "text_config": text,
        "vision_config": vision,
        **_token_ids(result, text["vocab_size"], source),
    }


def _text_part(config: Json, source: str) -> Json:
    """The text settings, taken out of the top level where an older file keeps them."""
    nested = config.get("text_config")
    text = {key: value for key, value in (nested or {}).items() if key != "model_type"}
    for key in (*TEXT_SIZES, *TEXT_OPTIONS, *ROPE_KEYS):
        if key not in config:
            continue
        # The generation code of transformers looks for the end tokens at the top level too.
        value = config[key] if key.endswith("token_id") else config.pop(key)
        if nested is None or (key not in text and value is not None):
            text[key] = value
        elif key in TEXT_SIZES and text.get(key) != value:
            raise ConfigError(
                f"{source}: {key!r} is {value} at the top level and {text.get(key)} in "
                "'text_config'. Remove the wrong one."
            )
    return text


def _require(part: Json, keys: tuple[str, ...], source: str, where: str) -> None:
    missing = [key for key in keys if part.get(key) is None]
    if missing:
        raise ConfigError(
            f"{source}: {where} lack {', '.join(map(repr, missing))}. "
            "Use the config.json that belongs to the weights."
        )


def _rope_parameters(text: Json, source: str) -> Json:
    """The rope settings in the form of transformers 5, complete."""
    new, old = text.get("rope_parameters"), text.get("rope_scaling")
    if new and old and dict(new).get("mrope_section") != dict(old).get("mrope_section"):
        raise ConfigError(
            f"{source}: 'rope_parameters' has mrope_section {new.get('mrope_section')} and "
            f"'rope_scaling' has {old.get('mrope_section')}. Remove the wrong one."
        )
    rope = dict(new or old or {})
    rope["rope_type"] = rope.pop("type", None) or rope.get("rope_type") or "default"
    if rope["rope_type"] not in ROPE_TYPES:
        raise ConfigError(
            f"{source}: the rope settings have rope_type {rope['rope_type']!r}; one of "
            f"{', '.join(ROPE_TYPES)} is needed, whose frequencies do not change while running."
        )
    for key in ("rope_theta", "partial_rotary_factor"):
        if text.get(key) is not None:
            rope.setdefault(key, text[key])
    rope.setdefault("rope_theta", 10000.0)
    section = rope.get("mrope_section")
    if not section or not all(isinstance(part, int) and part > 0 for part in section):
        raise ConfigError(
            f"{source}: the rope settings ('rope_parameters', or 'rope_scaling' in older files) "
            f"have mrope_section {section}; a list of positive numbers of frequencies per axis, "
            "such as [8, 12, 12], is needed."
        )
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    # The sections say how many pairs of channels rotate, so the factor follows from them.
    rope.setdefault("partial_rotary_factor", 2 * sum(section) / head_dim)
    rotary_dim = int(head_dim * rope["partial_rotary_factor"])
    if 2 * sum(section) != rotary_dim:
        raise ConfigError(
            f"{source}: mrope_section {list(section)} covers {2 * sum(section)} channels of a "
            f"head, but partial_rotary_factor {rope['partial_rotary_factor']} of head size "
            f"{head_dim} rotates {rotary_dim}. The two must agree."
        )
    return rope


def _check_sizes(text: Json, vision: Json, source: str) -> None:
    """Sizes that must agree with each other."""
    divisions = (
        (text, "hidden_size", "num_attention_heads"),
        (text, "num_attention_heads", "num_key_value_heads"),
        (vision, "hidden_size", "num_heads"),
        (vision, "image_size", "patch_size"),
    )
    for part, key, divisor in divisions:
        if part[key] % part[divisor]:
            raise ConfigError(
                f"{source}: {key!r} {part[key]} is not a multiple of {divisor!r} {part[divisor]}."
            )
    if vision["out_hidden_size"] != text["hidden_size"]:
        raise ConfigError(
            f"{source}: the vision part's 'out_hidden_size' {vision['out_hidden_size']} differs "
            f"from the decoder's 'hidden_size' {text['hidden_size']}; its output is the decoder's "
            "input."
        )


def _token_ids(config: Json, vocab_size: int, source: str) -> dict[str, int]:
    ids = {}
    for key, published in TOKEN_IDS.items():
        ids[key] = published if config.get(key) is None else config[key]
        if not 0 <= ids[key] < vocab_size:
            raise ConfigError(
                f"{source}: {key!r} is {ids[key]}, outside the vocabulary of {vocab_size} "
                "('vocab_size'). Give the id that the tokenizer has for it."
            )
    return ids


class Glm4vConfig(TransformersGlm4vConfig):
    """transformers' config of the model, from any of the three forms.

    It keeps the name of its base, by which transformers finds the classes that go with it.
    """

    @classmethod
    def from_dict(cls, config_dict: Json, **kwargs: Any) -> Any:
        name = kwargs.get("name_or_path") or config_dict.get("_name_or_path")
        source = f"{name}/config.json" if name else "config.json"
        return super().from_dict(normalise(config_dict, source), **kwargs)


def register_config() -> None:
    """Make `AutoConfig`, and so vLLM, read `model_type` glm4v through `Glm4vConfig`."""
    AutoConfig.register(Glm4vConfig.model_type, Glm4vConfig, exist_ok=True)
