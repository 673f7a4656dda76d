# SPDX-License-Identifier: Apache-2.0
"""The three forms of GLM-4.1V's config.json, read into one.

| written                     | text settings in | rope settings in                      |
|-----------------------------|------------------|---------------------------------------|
| July 2025                   | the top level    | `rope_scaling`, `rope_theta`, ...     |
| from 2025-10-25             | `text_config`    | `rope_scaling`, `rope_theta`, ...     |
| by transformers 5           | `text_config`    | `rope_parameters`                     |

`normalise` turns each into the last; `processing.hf_config` makes transformers read config.json
through it. Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_glm41v_npu.checkpoint.config_rope import ROPE_KEYS, ConfigError, rope_parameters
from vllm_glm41v_npu.checkpoint.tokens import first, mark_ids

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
    "head_dim",
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
ACTIVATIONS = ("silu", "swish")
"""transformers' names of the activation of both towers."""

TIED = "tie_word_embeddings"


def normalise(config: Mapping[str, Any], source: str = "config.json") -> Json:
    """Return any of the three forms in that of transformers 5, in which settings stay as they are.

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
    _check_fixed(text, vision, source)
    outer = {key: result.pop(key) for key in ROPE_KEYS if key in result}
    rope = rope_parameters(text, outer, source)
    text = {key: value for key, value in text.items() if key not in ROPE_KEYS}
    tied = first(TIED, result, text, default=False)
    return result | {
        TIED: tied,
        "text_config": text | {TIED: tied, "rope_parameters": rope},
        "vision_config": vision,
        **_token_ids(result, text, source),
    }


def _text_part(config: Json, source: str) -> Json:
    """Return the text settings, taken out of the top level where an older file keeps them."""
    nested = config.get("text_config")
    text = {key: value for key, value in (nested or {}).items() if key != "model_type"}
    for key in (*TEXT_SIZES, *TEXT_OPTIONS):
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


def _check_fixed(text: Json, vision: Json, source: str) -> None:
    """Check the settings of which the network has one value."""
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    fixed = ((text, "head_dim", head_dim), (vision, "temporal_patch_size", 2))
    for part, key, only in fixed:
        if part.get(key) not in (None, only):
            raise ConfigError(
                f"{source}: {key!r} is {part[key]}, and this network computes {only} alone. Use "
                "the config.json that belongs to the weights."
            )
    _check_activations({"the text settings": text, "'vision_config'": vision}, source)


def _check_activations(parts: Mapping[str, Json], source: str) -> None:
    """Check the activation: the network computes one, whatever config.json says."""
    for name, part in parts.items():
        found = part.get("hidden_act")
        if found not in (None, *ACTIVATIONS):
            raise ConfigError(
                f"{source}: 'hidden_act' of {name} is {found!r}, and this network computes "
                f"{ACTIVATIONS[0]!r} alone. Use the config.json that belongs to the weights; "
                "weights that were trained with another activation are not supported."
            )


def _check_sizes(text: Json, vision: Json, source: str) -> None:
    """Check the sizes that must agree with each other."""
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


def _token_ids(config: Json, text: Json, source: str) -> dict[str, int]:
    ids = mark_ids(config, text)
    for key, number in ids.items():
        if not 0 <= number < text["vocab_size"]:
            raise ConfigError(
                f"{source}: {key!r} is {number}, outside the vocabulary of "
                f"{text['vocab_size']} ('vocab_size'). Give the id that the tokenizer has for it."
            )
    return ids
