# SPDX-License-Identifier: Apache-2.0
"""What a description says of the network's layers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.quant.cases import DATA, write_mindie
from vllm_glm41v_npu.checkpoint.description import DESCRIPTION, Description, DescriptionError
from vllm_glm41v_npu.cpu.quant_config import CpuModelSlimConfig

TEXT = "language_model.model.layers.1."


def described(**changed: str | None) -> Description:
    """Return the fixture's, with other types; None leaves a tensor out."""
    content = json.loads((DATA / "w8a8_bf16" / DESCRIPTION).read_text()) | changed
    content = {name: kind for name, kind in content.items() if kind is not None}
    return Description.from_json(content)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (f"{TEXT}self_attn.qkv_proj", "W8A8"),  # three on disk
        (f"{TEXT}self_attn.o_proj", "W8A8"),
        (f"{TEXT}mlp.gate_up_proj", "W8A8"),  # one on disk
        (f"{TEXT}mlp.down_proj", "FLOAT"),
        ("visual.blocks.0.attn.qkv", "FLOAT"),  # one on disk
        ("visual.blocks.0.mlp.gate_up_proj", "FLOAT"),  # two on disk
        ("visual.merger.gate_up_proj", "FLOAT"),
        ("language_model.lm_head", "FLOAT"),
    ],
)
def test_types_of_fused_layers(layer: str, kind: str) -> None:
    """Guards against vllm-ascend's KeyErrors: the decoder's and the tower's parts differ."""
    assert described().layer_type(layer) == kind


def test_older_names() -> None:
    """Guards the naming of July 2025, in which the decoder is `model.` and the tower `visual.`."""
    content = json.loads((DATA / "w8a8_bf16" / DESCRIPTION).read_text())
    older = {name.replace("model.visual.", "visual."): kind for name, kind in content.items()}
    older = {name.replace(".language_model.", "."): kind for name, kind in older.items()}
    assert Description.from_json(older).types == described().types


def test_parts_of_different_types() -> None:
    """Guards against one part's type being taken for the whole fused layer."""
    mixed = described(**{"model.language_model.layers.1.self_attn.k_proj.weight": "FLOAT"})
    with pytest.raises(DescriptionError, match="q_proj W8A8, .*k_proj FLOAT, .*v_proj W8A8"):
        mixed.layer_type(f"{TEXT}self_attn.qkv_proj")
    missing = described(**{"model.visual.merger.up_proj.weight": None})
    with pytest.raises(DescriptionError, match="visual.merger.up_proj none"):
        missing.layer_type("visual.merger.gate_up_proj")


def test_layer_that_is_not_described() -> None:
    """Guards against a float layer where the description is another model's."""
    with pytest.raises(DescriptionError, match="no type for visual.blocks.7.attn.qkv.weight"):
        described().layer_type("visual.blocks.7.attn.qkv")


def test_mindie_form(tmp_path: Path) -> None:
    """Guards the form whose file is named after the type and says nothing of the whole."""
    content = {"a.weight": "W8A8S", "a.deq_scale": "W8A8S", "b.module.weight": "FLOAT"}
    (tmp_path / "quant_model_description_w8a8s.json").write_text(json.dumps(content))
    found = Description.read(tmp_path)
    assert found is not None
    assert (found.kind, found.file) == ("W8A8S", "quant_model_description_w8a8s.json")
    (tmp_path / "quant_model_description_w8a8.json").write_text("{}")
    with pytest.raises(DescriptionError, match="one description is needed"):
        Description.read(tmp_path)
    (tmp_path / DESCRIPTION).write_text(json.dumps({"version": "1.0.0", "a.weight": "FLOAT"}))
    found = Description.read(tmp_path)
    assert found is not None and found.kind == "FLOAT"


def test_the_tests_form_for_mindie_is_the_tools(tmp_path: Path) -> None:
    """Guards what other tests write in this form, against what msModelSlim itself wrote."""
    made, own = write_mindie(DATA / "w8a8_bf16", tmp_path / "made"), DATA / "w8a8_bf16_mindie"
    for name in ("quant_model_description_w8a8.json", "config.json"):
        assert json.loads((made / name).read_text()) == json.loads((own / name).read_text())


def test_wrapped_norms_are_float() -> None:
    """Guards the form for MindIE, which gives a wrapped norm the type of the layer behind it."""
    found = Description.read(DATA / "w8a8_bf16_mindie")
    assert found is not None and found.kind == "W8A8"
    assert found.types == described().types


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "no JSON object"),
        ('{"a.weight": 8}', "'a.weight' has the type 8"),
    ],
)
def test_bad_description(tmp_path: Path, text: str, message: str) -> None:
    """Guards against a traceback from a file that was cut short."""
    (tmp_path / DESCRIPTION).write_text(text)
    with pytest.raises(DescriptionError, match=message):
        Description.read(tmp_path)


def test_flag_without_a_description(tmp_path: Path) -> None:
    """Guards `--quantization ascend` on a float checkpoint."""
    with pytest.raises(DescriptionError, match="Leave --quantization out for a float checkpoint"):
        CpuModelSlimConfig().maybe_update_config(str(tmp_path))


def test_another_model_is_refused() -> None:
    """Guards against this network's names for the layers of another model."""
    other = SimpleNamespace(model_type="qwen2")
    with pytest.raises(DescriptionError, match="model type 'qwen2'.* runs GLM-4.1V alone"):
        CpuModelSlimConfig().maybe_update_config(str(DATA / "w8a8_bf16"), other)


def test_a_file_is_read_once_until_it_changes(tmp_path: Path) -> None:
    """Guards against reading and mapping 700 names again for every check."""
    path = tmp_path / DESCRIPTION
    path.write_text(json.dumps({"model.layers.0.a.weight": "FLOAT"}))
    first = Description.read(tmp_path)
    assert first is not None and first is Description.read(tmp_path)
    assert first.types == {f"{TEXT.replace('1', '0')}a.weight": "FLOAT"}
    assert first.on_disk == {"model.layers.0.a.weight": "FLOAT"}
    path.write_text(json.dumps({"model.layers.0.a.weight": "W8A8"}))
    changed = Description.read(tmp_path)
    assert changed is not None and changed.types != first.types
