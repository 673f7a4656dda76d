# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole, damaged, or not there."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.checkpoint.test_config import FORMS, changed
from tests.checkpoints import TINY
from tests.doctor.machines import (
    say,
    summary,
    write_weights,
)
from vllm_glm41v_npu.checkpoint.file_checks import BadCheckpoint, check_files
from vllm_glm41v_npu.checkpoint.folder import Checkpoint


@pytest.fixture
def sharded(copy) -> Path:
    """One of three shards."""
    (copy / "model.safetensors").unlink()
    weight_map = {}
    for number in range(3):
        name = f"model-0000{number + 1}-of-00003.safetensors"
        weight_map[tensor := f"model.layers.{number}.mlp.down_proj.weight"] = name
        write_weights(copy / name, {tensor: ("BF16", [8, 8])})
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return copy


def test_whole_shards(machine, sharded):
    """Guards against an index that is not read, and against the older names not being known."""
    finding = say(machine(sharded), "weights")
    assert finding.status == "ok"
    assert "3 tensors in 3 whole file(s), 0.4 kB, older names" in finding.found


LAST = "model-00003-of-00003.safetensors"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def point(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (Path.unlink, "is missing"),
        (cut, " bytes"),
        (lambda path: path.write_bytes(path.read_bytes()[:50]), "cut short in its header"),
        (lambda path: path.write_bytes(b""), "is no safetensors file"),
        (lambda path: path.write_text("<html>404 Not Found</html>"), "is no safetensors file"),
        (lambda path: path.write_bytes(struct.pack("<Q", 2) + b"[]"), "not safetensors'"),
        (point, "is a git-lfs pointer"),
    ],
)
def test_damaged_shard(machine, sharded, damage, said):
    """Guards against half an hour of loading that ends in a damaged file."""
    damage(sharded / LAST)
    finding = say(machine(sharded), "weights")
    assert finding.status == "fail"
    assert f"1 of 3 files cannot be used: {LAST} " in finding.found
    assert said in finding.found


def test_index_of_another_revision(machine, sharded):
    """Guards against tensors that the index promises and no file has."""
    write_weights(sharded / LAST, {"model.layers.9.mlp.down_proj.weight": ("BF16", [8, 8])})
    finding = say(machine(sharded), "weights")
    assert finding.status == "fail"
    assert "model.layers.2.mlp.down_proj.weight" in finding.found


def test_folder_without_weights(machine, copy):
    """Guards against a config alone passing for a checkpoint."""
    (copy / "model.safetensors").unlink()
    assert say(machine(copy), "weights").status == "warn"


@pytest.mark.parametrize("form", FORMS)
def test_config_forms(machine, copy, form):
    """Guards against a form that is not told, or that is refused."""
    (copy / "config.json").write_text(json.dumps(FORMS[form]))
    finding = say(machine(copy), "config.json")
    words = {"july-2025": "flat", "october-2025": "rope_scaling", "transformers-5": "parameters"}
    assert finding.status == "ok"
    assert words[form] in finding.found


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (changed("october-2025", "vision_config", None), "'vision_config' is missing"),
        (changed("july-2025", "hidden_size", None), "lack 'hidden_size'"),
        ({"model_type": "glm4v_moe"}, "model_type is 'glm4v_moe'"),
        (["no object"], "holds no JSON object"),
        (None, "there is none in"),
    ],
)
def test_bad_config(machine, copy, config, said):
    """Guards against another model, or half a config, that only vLLM's start would find."""
    (copy / "config.json").write_text(json.dumps(config))
    if config is None:
        (copy / "config.json").unlink()
    finding = say(machine(copy), "config.json")
    assert finding.status == "fail"
    assert said in finding.found + finding.advice


def test_companions(machine, copy):
    """Guards against chat that is refused, or pictures that are, for want of a small file."""
    assert say(machine(copy), "chat template").found == "chat_template.jinja"
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    assert say(machine(copy), "chat template").status == "warn"
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    assert say(machine(copy), "chat template").found == "tokenizer_config.json"
    (copy / "preprocessor_config.json").unlink()
    assert say(machine(copy), "tokenizer").found == "missing: preprocessor_config.json"


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("/no/such/folder", "fail", "there is no folder"),
        (str(TINY / "config.json"), "fail", "is a file"),
        ("nobody/GLM-4.1V", "fail", "HF_HUB_OFFLINE is set"),
    ],
)
def test_checkpoint_that_is_nowhere(machine, name, status, said):
    """Guards against a mistyped path, and against a download that was not asked for."""
    context = machine(name)
    finding = say(context, "model")
    assert (finding.status, said in finding.found) == (status, True)
    assert {"weights", "config.json"}.isdisjoint(summary(context))


def test_hub_name(machine, copy, tmp_path):
    """Guards against a cached model that is not found, and a hub out of reach taken for a fault
    of the machine."""
    repository = tmp_path / "hub" / "hub" / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots").mkdir()
    copy.rename(repository / "snapshots" / "abc")
    context = machine("some/model")
    assert "some/model, in the local cache" in say(context, "model").found
    assert say(context, "weights").status == "ok"
    online = machine("some/other", HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9", seconds=3)
    assert say(online, "model").status == "warn"
    modelscope = machine("some/other", VLLM_USE_MODELSCOPE="True")
    assert say(modelscope, "model").status == "warn"


def test_token_ids(machine, copy):
    """Guards ids that the start refuses: every picture would be refused, or taken for text."""
    assert say(machine(copy), "token ids").status == "ok"
    config = json.loads((copy / "config.json").read_text())
    config["image_token_id"] += 1
    (copy / "config.json").write_text(json.dumps(config))
    finding = say(machine(copy), "token ids")
    assert finding.status == "fail"
    assert f"image_token_id {config['image_token_id']} where the tokenizer has" in finding.found


@pytest.mark.parametrize("beginning", ["base_model.model.", "module."])
def test_names_of_a_wrapper(machine, copy, beginning):
    """Guards against weights that were saved with a tool's wrapper around the model."""
    names = [name for name in Checkpoint(copy).tensors]
    write_weights(copy / "model.safetensors", {beginning + names[0]: ("BF16", [8, 8])})
    finding = say(machine(copy), "weights")
    assert finding.status == "fail"
    assert f"{beginning}{names[0]}" in finding.found


def test_what_is_refused_at_the_start_is_what_the_doctor_says(machine, copy, monkeypatch):
    """Guards one mechanism: a file that is missing, by both, in the same words."""
    (copy / "preprocessor_config.json").unlink()
    finding = say(machine(copy), "tokenizer")
    model_config = SimpleNamespace(
        model=str(copy), revision=None, tokenizer=None, skip_tokenizer_init=False
    )
    with pytest.raises(BadCheckpoint) as raised:
        check_files(model_config, "cpu")
    assert str(raised.value) == f"{copy}: {finding.found}. {finding.advice}"
