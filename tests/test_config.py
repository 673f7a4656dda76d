# SPDX-License-Identifier: Apache-2.0
"""The three forms of config.json, and what is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from transformers import AutoConfig
from transformers.models.glm4v.configuration_glm4v import Glm4vConfig as TransformersGlm4vConfig

from vllm_glm41v_npu.config import ConfigError, Glm4vConfig, normalise, register_config

VISION = {
    "depth": 24,
    "hidden_size": 1536,
    "image_size": 336,
    "intermediate_size": 13696,
    "num_heads": 12,
    "out_hidden_size": 4096,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
TEXT = {
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "max_position_embeddings": 65536,
    "rms_norm_eps": 1e-5,
    "attention_bias": True,
    "eos_token_id": [151329, 151336, 151338, 151348],
    "pad_token_id": 151329,
}
OLD_ROPE = {
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "rope_scaling": {"type": "default", "mrope_section": [8, 12, 12]},
}
NEW_ROPE = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [8, 12, 12],
    }
}
TOP = {
    "architectures": ["Glm4vForConditionalGeneration"],
    "model_type": "glm4v",
    "image_token_id": 151343,
    "vision_config": VISION,
}
FORMS = {
    "july-2025": TOP | TEXT | OLD_ROPE | {"torch_dtype": "bfloat16"},
    "october-2025": TOP | {"text_config": TEXT | OLD_ROPE | {"dtype": "bfloat16"}},
    "transformers-5": TOP | {"text_config": TEXT | NEW_ROPE, "dtype": "bfloat16"},
}


def changed(form: str, path: str, value: Any) -> dict[str, Any]:
    """A form with one key replaced, or taken out where `value` is None."""
    config = copy.deepcopy(FORMS[form])
    part: Any = config
    *parents, key = path.split(".")
    for parent in parents:
        part = part[parent]
    if value is None:
        del part[key]
    else:
        part[key] = value
    return config


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_view(form: str) -> None:
    """Guards against a form that is read with transformers' defaults instead of its values."""
    view = normalise(FORMS[form])
    expected = normalise(FORMS["transformers-5"])
    assert view["text_config"]["rope_parameters"] == NEW_ROPE["rope_parameters"]
    for key, value in TEXT.items():
        assert view["text_config"][key] == value
    assert view["vision_config"] == expected["vision_config"]
    assert view["video_end_token_id"] == 151342


@pytest.mark.parametrize("form", FORMS)
def test_normalising_twice_changes_nothing(form: str) -> None:
    """Guards the round trip config -> dict -> config, which vLLM and transformers both make."""
    once = normalise(FORMS[form])
    assert normalise(copy.deepcopy(once)) == once


@pytest.mark.parametrize("form", FORMS)
def test_autoconfig_reads_every_form(form: str, tmp_path) -> None:
    """Guards the registration: AutoConfig must use this package's reader, for vLLM and others."""
    (tmp_path / "config.json").write_text(json.dumps(FORMS[form]))
    register_config()
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, Glm4vConfig)
    assert isinstance(config, TransformersGlm4vConfig)
    assert config.text_config.num_hidden_layers == 40
    assert config.text_config.rope_parameters["mrope_section"] == [8, 12, 12]
    assert config.vision_config.depth == 24


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", ["num_key_value_heads", "hidden_size"])
def test_a_missing_text_key_is_named(form: str, key: str) -> None:
    """Guards against the silent default of the 9B model for a key the file does not have."""
    path = key if form == "july-2025" else f"text_config.{key}"
    with pytest.raises(ConfigError, match=f"my/config.json: the text settings lack '{key}'"):
        normalise(changed(form, path, None), "my/config.json")


def test_a_config_without_a_vision_part_is_refused() -> None:
    """Guards against a text GLM-4 that is opened as this model."""
    with pytest.raises(ConfigError, match="'vision_config' is missing"):
        normalise(changed("july-2025", "vision_config", None))


def test_a_missing_vision_key_is_named() -> None:
    """Guards against the silent default of the 9B model in the vision part."""
    with pytest.raises(ConfigError, match="'vision_config' lack 'out_hidden_size'"):
        normalise(changed("transformers-5", "vision_config.out_hidden_size", None))


@pytest.mark.parametrize(
    ("form", "path", "value", "message"),
    [
        ("october-2025", "hidden_size", 2048, "'hidden_size' is 2048 at the top level and 4096"),
        ("transformers-5", "text_config.rope_scaling", {"mrope_section": [16, 8, 8]}, "Remove"),
        ("transformers-5", "text_config.rope_parameters.mrope_section", [8, 8, 8], "must agree"),
        ("transformers-5", "text_config.rope_parameters.mrope_section", None, "mrope_section None"),
        ("transformers-5", "text_config.rope_parameters.rope_type", "longrope", "'longrope'; one"),
        ("july-2025", "num_attention_heads", 33, "not a multiple of 'num_attention_heads' 33"),
        ("july-2025", "vision_config.out_hidden_size", 1024, "'out_hidden_size' 1024 differs"),
        ("july-2025", "image_token_id", 200000, "outside the vocabulary of 151552"),
    ],
)
def test_contradictions_are_named(form: str, path: str, value: Any, message: str) -> None:
    """Guards against two keys that disagree, where one would win in silence."""
    with pytest.raises(ConfigError, match=message):
        normalise(changed(form, path, value))


def test_the_rotary_factor_follows_from_the_sections() -> None:
    """Guards older files that leave partial_rotary_factor out."""
    view = normalise(changed("october-2025", "text_config.partial_rotary_factor", None))
    assert view["text_config"]["rope_parameters"]["partial_rotary_factor"] == 0.5
