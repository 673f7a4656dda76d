# SPDX-License-Identifier: Apache-2.0
"""The names of tensors, against the keys of real checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import Glm4vConfig

from vllm_glm41v_npu.checkpoint import names
from vllm_glm41v_npu.checkpoint.description import DESCRIPTION, DYNAMIC, RULES, SPARSE, W8A8
from vllm_glm41v_npu.checkpoint.folder import Checkpoint
from vllm_glm41v_npu.checkpoint.names import NETWORK, NEWER, OLDER
from vllm_glm41v_npu.checkpoint.shapes import checkpoint_shapes, part_shapes

DATA = Path(__file__).parents[1] / "data"
MADE = {W8A8: DATA / "msmodelslim" / "w8a8_bf16", SPARSE: DATA / "msmodelslim" / "w8a8s_fp16"}
SOURCE = DATA / "msmodelslim" / "source_fp16"
TYPES = pytest.mark.parametrize("kind", MADE)


def published() -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the 9B checkpoint, as transformers lists them."""
    lines = (DATA / "parameter_shapes.txt").read_text().splitlines()
    pairs = (line.split("\t") for line in lines if line[0] != "#")
    return {name: tuple(json.loads(shape)) for name, shape in pairs}


def written(kind: str) -> set[str]:
    """Return the names that msModelSlim wrote for a checkpoint of this type."""
    return set(Checkpoint(MADE[kind]).tensors)


def added(kind: str) -> set[str]:
    """Return the names that msModelSlim wrote and that its source has not."""
    return written(kind) - Checkpoint(SOURCE).tensors.keys()


def test_the_published_names_are_those_of_the_network() -> None:
    """Guards prefixes, norms and layers by all 704 keys: each is known, with its shape."""
    text = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    shapes = checkpoint_shapes(Glm4vConfig(text_config=text))
    assert len(published()) == 704
    assert {names.network_name(name): shape for name, shape in published().items()} == shapes


@pytest.mark.parametrize("naming", [NEWER, OLDER])
def test_names_go_to_the_network_and_back(naming: names.Naming) -> None:
    """Guards both namings on disk, and names of the network itself, which saved shards have."""
    older = naming is OLDER
    for name in published():
        there = name
        if older:
            there = name.replace("model.visual.", "visual.").replace(
                "model.language_model", "model"
            )
        here = names.network_name(there)
        assert here.startswith((NETWORK.text, NETWORK.vision, NETWORK.head))
        assert names.disk_name(here, naming) == there
        assert names.network_name(here) == here
        if name.startswith((NEWER.vision, f"{NEWER.text}layers.")):
            assert names.is_older(there) == older


def test_fused_layers_are_whole() -> None:
    """Guards the parts: each layer that is fused of some has all of them in the checkpoint."""
    layers = {names.split_name(names.network_name(name))[0] for name in published()}
    fused = {layer for layer in map(names.fused_layer, layers) if layer not in layers}
    ends = {tuple(layer.split(".")[-2:]) for layer in fused}
    assert ends == {("self_attn", "qkv_proj"), ("mlp", "gate_up_proj"), ("merger", "gate_up_proj")}
    assert len(fused) == 40 + 24 + 1
    for layer in fused:
        parts = names.layer_parts(layer)
        assert layers.issuperset(parts)
        assert {names.fused_layer(part) for part in parts} == {layer}
    assert names.fused_tensor("a.k_proj.bias") == "a.qkv_proj.bias"
    assert names.layer_parts("a.o_proj") == ("a.o_proj",)


def test_the_decoders_parts_are_those_on_disk() -> None:
    """Guards what LoRA adapters are trained against: gate and up are one layer in the decoder."""
    decoder = {name for name in published() if name.startswith(f"{NEWER.text}layers.0.")}
    last = {names.last_part(names.split_name(name)[0]) for name in decoder}
    for parts in names.DECODER_PARTS.values():
        assert last.issuperset(parts)
    assert not last & set(names.FUSED["gate_up_proj"])


def test_parts_where_a_trainer_wrote_two() -> None:
    """Guards checkpoints whose decoder has gate and up by themselves."""
    fused = {"a.mlp.gate_up_proj.weight": (6, 2), "a.q_proj.weight": (4, 2)}
    parts = {"a.mlp.gate_proj.weight": (3, 2), "a.mlp.up_proj.weight": (3, 2)}
    assert part_shapes(fused) == parts


def test_the_one_norm_with_a_bias() -> None:
    """Guards the merger's LayerNorm: its bias is the model's, and no other norm has one."""
    biases = [name for name in published() if names.is_norm_bias(name)]
    assert biases == [f"{NEWER.vision}merger.{names.LAYER_NORM}.bias"]
    assert not names.is_added_bias(biases[0])


@TYPES
def test_biases_that_msmodelslim_adds(kind: str) -> None:
    """Guards against a norm's bias that is loaded as the model's, or the other way round."""
    biases = {name for name in written(kind) if names.is_added_bias(name)}
    assert biases == {name for name in added(kind) if name.endswith("norm.bias")} | {
        f"{NEWER.vision}blocks.{block}.norm{number}.bias" for block in (0, 1) for number in (1, 2)
    }
    norms = {name for name in written(kind) if names.is_rms_norm(names.split_name(name)[0])}
    assert norms == biases | {name.replace(".bias", ".weight") for name in biases}


def test_wrapped_norms() -> None:
    """Guards the form for MindIE, which has each RMSNorm a second time."""
    path = DATA / "msmodelslim" / "w8a8_bf16_mindie" / "quant_model_description_w8a8.json"
    content = json.loads(path.read_text())
    wrapped = {name for name in content if names.is_wrapped(name)}
    assert {names.plain_name(name) for name in wrapped} == {
        name for name in content if names.is_rms_norm(names.split_name(name)[0])
    } - wrapped
    for name in wrapped:
        assert names.network_name(name) == names.network_name(names.plain_name(name))
        assert names.is_added_bias(name) == name.endswith(".bias")


@TYPES
def test_suffixes_of_quantized_layers(kind: str) -> None:
    """Guards against a tensor of a quantized layer that no rule knows."""
    suffixes = {names.split_name(name)[1] for name in added(kind) if not names.is_norm_bias(name)}
    wanted = RULES[kind].keys() - {"weight", "bias"}
    optional = set() if kind == W8A8 else set(names.IN_DEQ_SCALE)
    assert suffixes == wanted - optional
    assert suffixes | {"weight", "bias"} <= {*names.ROWS, *names.PER_TENSOR}
    assert RULES[DYNAMIC].keys() <= set(names.ROWS)


@TYPES
def test_axes_of_tensors(kind: str) -> None:
    """Guards which tensors are reordered and split with the output channels."""
    tensors = Checkpoint(MADE[kind]).tensors
    described = json.loads((MADE[kind] / DESCRIPTION).read_text())
    for name, tensor in tensors.items():
        layer, suffix = names.split_name(name)
        if described[name] == kind:
            rows = tensors[f"{layer}.weight"].shape[0]
            assert tensor.shape[0] == (1 if suffix in names.PER_TENSOR else rows)


def test_deq_scale_holds_the_weights_scale() -> None:
    """Guards the tensors that are passed over because deq_scale is made of them."""
    tensors = load_file(MADE[W8A8] / "quant_model_weight_w8a8.safetensors")
    layers = [name.removesuffix(f".{names.DEQ_SCALE}") for name in tensors if "deq_scale" in name]
    assert layers
    for layer in layers:
        scale, offset = (tensors[f"{layer}.{suffix}"].float() for suffix in names.IN_DEQ_SCALE)
        product = tensors[f"{layer}.{names.INPUT_SCALE}"].float() * scale[:, 0]
        assert ((tensors[f"{layer}.{names.DEQ_SCALE}"] / product - 1).abs() < 0.02).all()
        assert not offset.any()


@TYPES
def test_parts_share_what_is_per_tensor(kind: str) -> None:
    """Guards the values of which a fused layer keeps one for all its parts."""
    (path,) = MADE[kind].glob("*.safetensors")
    shared: dict[str, set[float]] = {}
    for name, tensor in load_file(path).items():
        if names.split_name(name)[1] in names.PER_TENSOR:
            shared.setdefault(names.fused_tensor(name), set()).add(tensor.item())
    assert len(shared) == 2 * 2 * 3  # scale and offset, of three fused layers in two
    assert all(len(values) == 1 for values in shared.values())
