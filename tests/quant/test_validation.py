# SPDX-License-Identifier: Apache-2.0
"""Bad checkpoints are refused before a weight is loaded, and the message names the tensor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from vllm.engine.arg_utils import EngineArgs

from tests.quant.cases import DATA, write_mindie, write_mixed
from vllm_glm41v_npu import plugin
from vllm_glm41v_npu.checkpoint.description import DESCRIPTION, Description
from vllm_glm41v_npu.checkpoint.folder import Checkpoint
from vllm_glm41v_npu.checkpoint.shapes import checkpoint_shapes
from vllm_glm41v_npu.quant.validation import CheckpointError, validate

ATTENTION = "model.language_model.layers.0.self_attn."
WEIGHTS = "quant_model_weight_w8a8.safetensors"


def check(folder: Path, dtype: str = "bfloat16") -> None:
    description = Description.read(folder)
    assert description is not None
    shapes = checkpoint_shapes(AutoConfig.from_pretrained(folder))
    validate(Checkpoint(folder), description, shapes, dtype)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / "w8a8_bf16", tmp_path / "copy"))


def change(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    """Replace a tensor, or leave it out."""
    tensors = load_file(folder / WEIGHTS)
    del tensors[name]
    save_file(tensors if tensor is None else tensors | {name: tensor}, folder / WEIGHTS)


def describe(folder: Path, **changed: str) -> None:
    content = json.loads((folder / DESCRIPTION).read_text()) | changed
    (folder / DESCRIPTION).write_text(json.dumps(content))


def test_good_checkpoints(tmp_path: Path) -> None:
    """Guards against a check that refuses what msModelSlim writes, in either dtype and form."""
    check(DATA / "w8a8_bf16", "bfloat16")
    check(DATA / "w8a8s_fp16", "float16")
    for name in ("w8a8_bf16", "w8a8s_fp16"):
        check(DATA / name, "float32")
    check(write_mixed(tmp_path), "float16")
    for name, dtype in (("w8a8_bf16", "bfloat16"), ("w8a8s_fp16", "float16")):
        check(write_mindie(DATA / name, tmp_path / name), dtype)


def test_a_wrapped_norm_that_is_no_float_is_refused(tmp_path: Path) -> None:
    """Guards the form for MindIE, whose description does not say what its norms are stored in."""
    folder = write_mindie(DATA / "w8a8_bf16", tmp_path / "mindie")
    name = "model.language_model.layers.0.input_layernorm.module.weight"
    change(folder, name, torch.ones(256, dtype=torch.int8))
    with pytest.raises(CheckpointError, match=f"'{name}' in {WEIGHTS} is I8, not F64 or"):
        check(folder)


@pytest.mark.parametrize(
    ("name", "dtype", "made"),
    [("w8a8_bf16", "float16", "bfloat16"), ("w8a8s_fp16", "bfloat16", "float16")],
)
def test_scales_of_another_dtype(name: str, dtype: str, made: str) -> None:
    """Guards against all zeros in silence: deq_scale is misread in the other half precision."""
    with pytest.raises(CheckpointError, match=f"made for {made}.*Start with --dtype {made}"):
        check(DATA / name, dtype)


def test_truncated_file(copy: Path) -> None:
    """Guards against a read beyond the end of a file that was not copied whole."""
    path = copy / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"{WEIGHTS} is cut short"):
        check(copy)


SCALE = torch.full((256,), 0.01)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("q_proj.deq_scale", None, "names .*q_proj.deq_scale', which is in no file"),
        ("q_proj.weight", torch.zeros(256, 256), f"q_proj.weight' in {WEIGHTS} is F32, not I8"),
        ("q_proj.quant_bias", torch.zeros(255).int(), r"has shape \[255\], not \[256\]"),
        ("q_proj.deq_scale", SCALE.double(), "is F64, not I64 or F32"),
        ("q_proj.deq_scale", SCALE.int().long(), "made for different dtypes"),
        ("q_proj.deq_scale", SCALE * torch.nan, r"holds nan \(256 such\); finite positive"),
        ("q_proj.deq_scale", -SCALE, "holds -0.01"),
        ("q_proj.input_scale", torch.tensor([0.5]), r"take one input, but differ: .*q_proj.* 0.5"),
        ("k_proj.input_offset", torch.tensor([9.0]), r"take one input, but differ: .*k_proj.* 9"),
        ("o_proj.input_offset", torch.tensor([200.0]), "is 200; a whole number from -128"),
        ("o_proj.weight_offset", torch.ones(256, 1), "is not zero; weights quantized symm"),
        ("o_proj.weight_scale", torch.zeros(256, 1), r"holds 0 \(256 such\)"),
    ],
)
def test_wrong_tensor(copy: Path, name: str, tensor: torch.Tensor | None, message: str) -> None:
    """Guards against wrong answers from one wrong tensor, each of which would load."""
    change(copy, ATTENTION + name, tensor)
    with pytest.raises(CheckpointError, match=message):
        check(copy)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("o_proj.weight", "W4A4", "W4A4 for .* to one of W8A8, W8A8S, W8A8_DYNAMIC"),
        ("o_proj.weight", "W8A8SC", "only in shards for each tensor-parallel rank"),
        ("o_proj.zero", "W8A8", "names .*o_proj.zero', which is in no file"),
        ("k_proj.weight", "FLOAT", "its parts have different types"),
    ],
)
def test_wrong_description(copy: Path, name: str, kind: str, message: str) -> None:
    """Guards against a description of another run of msModelSlim."""
    describe(copy, **{ATTENTION + name: kind})
    with pytest.raises(CheckpointError, match=message):
        check(copy)


def test_quantized_output_projection(copy: Path) -> None:
    """Guards against a type where nothing computes it."""
    describe(copy, **{"lm_head.weight": "W8A8"})
    with pytest.raises(CheckpointError, match="not supported .*: W8A8 for 'lm_head.weight'"):
        check(copy)


def test_the_engine_refuses_it_first(copy: Path) -> None:
    """Guards against a check that vLLM does not run before it starts any process."""
    plugin.register()
    change(copy, f"{ATTENTION}q_proj.deq_scale", None)
    with pytest.raises(ValueError, match="q_proj.deq_scale', which is in no file"):
        EngineArgs(str(copy), dtype="float32").create_engine_config()
    good = EngineArgs(str(DATA / "w8a8_bf16"), dtype="float32", quantization="ascend")
    assert good.create_engine_config().model_config.quantization == "ascend"
    with pytest.raises(ValueError, match="Start with --dtype bfloat16"):
        EngineArgs(str(DATA / "w8a8_bf16"), dtype="float16").create_engine_config()
