# SPDX-License-Identifier: Apache-2.0
"""The three forms of config.json, and what is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from transformers import AutoConfig
from transformers.models.glm4v.configuration_glm4v import Glm4vConfig as TransformersGlm4vConfig

from vllm_glm41v_npu.checkpoint.config import ConfigError, normalise
from vllm_glm41v_npu.processing.hf_config import Glm4vConfig, register_config

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
        ("july-2025", "vision_config.out_hidden_size", 8192, "'out_hidden_size' 8192 differs"),
        ("july-2025", "image_token_id", 200000, "outside the vocabulary of 151552"),
        ("july-2025", "image_token_id", 151552, "outside the vocabulary of 151552"),
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


def test_the_older_name_of_three_axis_rope() -> None:
    """Guards older files, whose plain rope has the type "mrope"."""
    block = {"type": "mrope", "mrope_section": [8, 12, 12]}
    view = normalise(changed("october-2025", "text_config.rope_scaling", block))
    assert view["text_config"]["rope_parameters"] == NEW_ROPE["rope_parameters"]


YARN: dict[str, Any] = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("form", "path", "block"),
    [
        ("july-2025", "rope_scaling", YARN | {"mrope_section": [8, 12, 12]}),
        ("october-2025", "text_config.rope_scaling", YARN | {"mrope_section": [8, 12, 12]}),
        ("october-2025", "rope_scaling", YARN),
        ("transformers-5", "text_config.rope_scaling", YARN),
        ("transformers-5", "rope_scaling", YARN | {"rope_type": "yarn"}),
        ("transformers-5", "rope_parameters", YARN),
    ],
)
def test_a_block_that_a_user_adds_is_not_dropped(form: str, path: str, block: Any) -> None:
    """Guards the yarn block that model cards tell users to add, under either key and level."""
    rope = normalise(changed(form, path, block))["text_config"]["rope_parameters"]
    want = NEW_ROPE["rope_parameters"] | {key: block[key] for key in YARN if key != "type"}
    assert rope == want | {"rope_type": "yarn"}


@pytest.mark.parametrize("key", ["factor", "rope_type", "rope_theta", "mrope_section"])
@pytest.mark.parametrize("path", ["text_config.rope_scaling", "rope_scaling"])
def test_two_rope_blocks_that_disagree_are_refused(key: str, path: str) -> None:
    """Guards against two blocks of which one wins in silence."""
    block = NEW_ROPE["rope_parameters"] | YARN | {"rope_type": "yarn"}
    config = changed("transformers-5", "text_config.rope_parameters", block)
    other = {"factor": 2.0, "rope_type": "linear", "rope_theta": 5e5, "mrope_section": [16, 8, 8]}
    *parents, name = path.split(".")
    part = config[parents[0]] if parents else config
    part[name] = {"rope_type": "yarn", key: other[key]}
    with pytest.raises(ConfigError, match=f"{key} .* Remove the wrong one"):
        normalise(config)


def test_two_names_of_one_type_must_agree() -> None:
    """Guards the block of transformers 4, which holds the type twice."""
    block = YARN | {"type": "default", "rope_type": "yarn", "mrope_section": [8, 12, 12]}
    with pytest.raises(ConfigError, match="rope_type 'yarn' and type 'default'. Remove"):
        normalise(changed("october-2025", "text_config.rope_scaling", block))


@pytest.mark.parametrize("key", ["image_token_id", "video_end_token_id"])
def test_ids_among_the_text_settings_count(key: str) -> None:
    """Guards what a converter writes there, against the published ids in its place."""
    config = changed("transformers-5", f"text_config.{key}", 151363)
    config.pop(key, None)
    assert normalise(config)[key] == 151363


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", ["tie_word_embeddings", "text_config.tie_word_embeddings"])
def test_a_tie_counts_at_both_levels(form: str, path: str) -> None:
    """Guards the decoder, which reads the text settings, and the loader, which reads the top."""
    if form == "july-2025":
        path = "tie_word_embeddings"
    view = normalise(changed(form, path, True))
    assert view["tie_word_embeddings"] and view["text_config"]["tie_word_embeddings"]
    untied = normalise(FORMS[form])
    assert not untied["tie_word_embeddings"] and not untied["text_config"]["tie_word_embeddings"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("text_config.hidden_act", "gelu", "'hidden_act' of the text settings is 'gelu'"),
        ("vision_config.hidden_act", "gelu_tanh", "'hidden_act' of 'vision_config' is 'gelu_tanh'"),
        ("text_config.head_dim", 64, "'head_dim' is 64, and this network computes 128 alone"),
        ("vision_config.temporal_patch_size", 1, "'temporal_patch_size' is 1"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(path: str, value: Any, message: str) -> None:
    """Guards against settings that the network does not read."""
    with pytest.raises(ConfigError, match=message):
        normalise(changed("transformers-5", path, value))


@pytest.mark.parametrize("act", ["silu", "swish"])
def test_both_names_of_the_activation_are_taken(act: str) -> None:
    """Guards against a refusal of the same function."""
    normalise(changed("transformers-5", "text_config.hidden_act", act))
