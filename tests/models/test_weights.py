# SPDX-License-Identifier: Apache-2.0
"""Every tensor of a checkpoint is accounted for, at the true size too, and errors name it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Glm4vConfig, Glm4vForConditionalGeneration
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import (
    cleanup_dist_env_and_memory,
    ensure_model_parallel_initialized,
    init_distributed_environment,
)
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.network_utils import get_open_port

from vllm_glm41v_npu.models.convert import WeightError, fold_patch_embed
from vllm_glm41v_npu.models.weights import HF_TO_VLLM
from vllm_glm41v_npu.processing.pixel_settings import ImageSettings

SHAPES_FILE = Path(__file__).parents[1] / "data" / "parameter_shapes.txt"


def true_shapes() -> dict[str, list[int]]:
    """Names and shapes of the 9B checkpoint, as transformers lists them."""
    lines = (line.split("\t") for line in SHAPES_FILE.read_text().splitlines() if line[0] != "#")
    return {name: json.loads(shape) for name, shape in lines}


def older_name(name: str) -> str:
    """The naming of July 2025."""
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


@pytest.fixture
def true_size(shared_true_size) -> nn.Module:
    """The 9B network as before its first load."""
    shared_true_size.__dict__.pop("weight_loader", None)
    return shared_true_size


@pytest.fixture(scope="module")
def shared_true_size(tmp_path_factory) -> Iterator[nn.Module]:
    """The 9B network on meta tensors: shapes without memory."""
    folder = tmp_path_factory.mktemp("true-size")
    config = Glm4vConfig(architectures=["Glm4vForConditionalGeneration"]).to_dict()
    config["text_config"]["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [8, 12, 12],
    }
    (folder / "config.json").write_text(json.dumps(config))
    vllm_config = EngineArgs(
        str(folder), skip_tokenizer_init=True, dtype="float16", max_model_len=4096
    ).create_engine_config()
    yield from build_on_meta(vllm_config)


def build_on_meta(vllm_config: VllmConfig) -> Iterator[nn.Module]:
    with set_current_vllm_config(vllm_config):
        address = f"tcp://127.0.0.1:{get_open_port()}"
        init_distributed_environment(1, 0, address, 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
        with torch.device("meta"):
            yield initialize_model(vllm_config)
    cleanup_dist_env_and_memory()


def meta_tensors(shapes: dict[str, list[int]]) -> list[tuple[str, torch.Tensor]]:
    return [(name, torch.empty(shape, device="meta")) for name, shape in shapes.items()]


def quantized_loader(network: nn.Module) -> None:
    """Let the network's loader take tensors of quantized layers."""
    loader = network.weight_loader
    loader.layout = replace(loader.layout, quantized=True)


@pytest.mark.parametrize("naming", [str, older_name])
def test_all_704_tensors_load(true_size, naming) -> None:
    """Guards both on-disk namings: every tensor is taken, and every parameter is filled."""
    shapes = {naming(name): shape for name, shape in true_shapes().items()}
    assert len(shapes) == 704
    loaded = true_size.load_weights(meta_tensors(shapes))
    assert loaded == {name for name, _ in true_size.named_parameters()}


def test_the_network_holds_the_same_numbers(true_size) -> None:
    """Guards the total: nothing is held twice, nothing is left out."""
    total = sum(torch.Size(shape).numel() for shape in true_shapes().values())
    assert total == 10_292_777_472
    assert sum(param.numel() for param in true_size.parameters()) == total


@pytest.mark.parametrize("naming", [str, older_name])
def test_a_missing_tensor_is_named(true_size, naming) -> None:
    """Guards against a half-downloaded checkpoint that is served with random weights."""
    shapes = {naming(name): shape for name, shape in true_shapes().items()}
    missing = naming("model.language_model.layers.7.mlp.down_proj.weight")
    del shapes[missing]
    with pytest.raises(WeightError, match="lacks 1 of 704") as raised:
        true_size.load_weights(meta_tensors(shapes))
    assert f"'{missing}' [4096, 13696]" in str(raised.value)


def test_a_part_of_a_fused_layer_is_missed(true_size) -> None:
    """Guards q, k and v: vLLM's own check sees one layer, filled or not."""
    shapes = true_shapes()
    del shapes["model.language_model.layers.0.self_attn.k_proj.bias"]
    with pytest.raises(WeightError, match=r"layers\.0\.self_attn\.k_proj\.bias' \[256\]"):
        true_size.load_weights(meta_tensors(shapes))


def test_after_the_first_load_any_part_may_come(true_size) -> None:
    """Guards updates in place, as reinforcement learning sends them: one tensor at a time."""
    true_size.load_weights(meta_tensors(true_shapes()))
    for tensor in meta_tensors(true_shapes()):
        assert len(true_size.load_weights([tensor])) in (1, 3)  # the patch embedding fills three


@pytest.mark.parametrize(
    ("suffix", "shape", "fine"),
    [
        ("weight_scale", [256, 1], True),
        ("weight_packed", [256, 512], True),
        ("input_scale", [1], True),
        ("weight_shape", [2], True),
        ("scales", [32, 256], True),
        ("weight", [4096, 32], False),
        ("absmax", [256], False),
    ],
)
def test_the_layouts_of_quantized_rows(true_size, suffix: str, shape: list[int], fine) -> None:
    """Guards against quantized q and k rows that are left in the checkpoint's order in silence."""
    name = f"model.language_model.layers.0.self_attn.k_proj.{suffix}"
    true_size.load_weights(meta_tensors(true_shapes()))
    quantized_loader(true_size)
    # The float network has no such parameter: what is fine reaches its layer and stops there.
    reason = "quantization method of its layer" if fine else "the 256 output channels of"
    with pytest.raises(WeightError, match=reason):
        true_size.load_weights(meta_tensors({name: shape}))


def test_scales_that_a_layer_does_not_keep_are_passed_over(true_size, monkeypatch) -> None:
    """Guards checkpoints that hold, beside deq_scale, what it is made of."""
    name = "model.language_model.layers.0.self_attn.o_proj.weight_scale"
    true_size.load_weights(meta_tensors(true_shapes()))
    quantized_loader(true_size)
    layer = true_size.language_model.model.layers[0].self_attn.o_proj
    deq_scale = nn.Parameter(torch.empty(4096, device="meta"), requires_grad=False)
    monkeypatch.setitem(layer._parameters, "deq_scale", deq_scale)
    assert true_size.load_weights(meta_tensors({name: [4096, 1]})) == set()


def test_an_unknown_tensor_is_named(true_size) -> None:
    """Guards against weights of a sibling (GLM-4.5V, a text GLM-4) behind this config."""
    shapes = true_shapes() | {"model.language_model.layers.40.eh_proj.weight": [4096, 8192]}
    with pytest.raises(WeightError, match=r"layers\.40\.eh_proj\.weight' of shape \[4096, 8192\]"):
        true_size.load_weights(meta_tensors(shapes))


def test_a_misshapen_tensor_is_named_with_both_shapes(true_size) -> None:
    """Guards against a tensor that would be cut or broadcast in silence."""
    shapes = true_shapes() | {"model.visual.blocks.3.attn.qkv.weight": [4608, 1024]}
    with pytest.raises(WeightError, match=r"\[4608, 1024\]; config.json demands \[4608, 1536\]"):
        true_size.load_weights(meta_tensors(shapes))


def test_the_name_maps_are_those_of_transformers() -> None:
    """Guards the prefixes against what transformers writes."""
    config = Glm4vConfig(
        text_config={"num_hidden_layers": 1}, vision_config={"depth": 1}, architectures=[]
    )
    with torch.device("meta"):
        names = [name for name, _ in Glm4vForConditionalGeneration(config).named_parameters()]
    mapped = HF_TO_VLLM.apply_list(names)
    assert len(mapped) == len(names)
    assert {name.split(".")[0] for name in mapped} == {"visual", "language_model"}
    assert mapped == HF_TO_VLLM.apply_list([older_name(name) for name in names])


@pytest.mark.parametrize("rescale", [1 / 255, 1 / 127.5])
def test_folding_the_normalisation_changes_nothing(rescale: float) -> None:
    """Guards the folded patch embedding against transformers' order of operations."""
    settings = ImageSettings(rescale_factor=rescale)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 3, 2, 14, 14, generator=generator) / 30
    bias = torch.randn(16, generator=generator)
    frames = torch.randint(0, 256, (5, 3, 2, 14, 14), generator=generator)

    channels = (1, 3, 1, 1, 1)
    mean, std = (torch.tensor(x).view(channels) for x in (settings.mean, settings.std))
    normalised = (frames * rescale - mean) / std
    want = nn.functional.conv3d(normalised, weight, bias).flatten(1)

    folded = fold_patch_embed(weight, bias, settings)
    # [5, 3, 2, 14, 14] -> [2, 5, 14 * 14 * 3]
    first, second = frames.permute(2, 0, 3, 4, 1).flatten(2).float()
    got = (first - 128) @ folded["proj.weight"].T + folded["proj.bias"]
    got += (second - first) @ folded["motion.weight"].T
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)
