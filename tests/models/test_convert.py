# SPDX-License-Identifier: Apache-2.0
"""The generator between a checkpoint's tensors and the network's, without a network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vllm_glm41v_npu.checkpoint.names import HEAD, NEWER, network_name
from vllm_glm41v_npu.models.convert import Layout, Named, WeightError, convert, fold_patch_embed
from vllm_glm41v_npu.processing.hf_config import Glm4vConfig
from vllm_glm41v_npu.processing.pixel_settings import ImageSettings

DATA = Path(__file__).parents[1] / "data" / "msmodelslim"
LAYER = "language_model.model.layers.0."
PATCH = "visual.patch_embed."
HEAD_DIM, ROTATED = 64, 32
SETTINGS = ImageSettings()


def layout_of(folder: Path, quantized: bool = False) -> Layout:
    config = Glm4vConfig.from_dict(json.loads((folder / "config.json").read_text()))
    return Layout(config, SETTINGS, quantized)


@pytest.fixture(scope="module")
def layout() -> Layout:
    return layout_of(DATA / "source_fp16")


@pytest.fixture(scope="module")
def source() -> dict[str, torch.Tensor]:
    return load_file(DATA / "source_fp16" / "model.safetensors")


def older_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same tensors in the naming of July 2025."""
    return {
        name.replace(NEWER.vision, "visual.").replace(NEWER.text, "model."): tensor
        for name, tensor in tensors.items()
    }


def half_form(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows of q or k, head by head, with rotated pairs half a head apart."""
    middle = (ROTATED + HEAD_DIM) // 2
    even, odd = range(0, ROTATED, 2), range(1, ROTATED, 2)
    order = [*even, *range(ROTATED, middle), *odd, *range(middle, HEAD_DIM)]
    heads = [rows[start : start + HEAD_DIM] for start in range(0, len(rows), HEAD_DIM)]
    return torch.cat([head[order] for head in heads])


@pytest.mark.parametrize("naming", [dict, older_names])
def test_every_tensor_comes_out_once_in_its_layout(layout, source, naming) -> None:
    """Guards the four layouts, by a rule of its own for each, and all that keeps its layout."""
    found = list(convert(naming(source).items(), layout))
    tensors = dict(found)
    assert len(tensors) == len(found) == len(source) + 1  # the patch embedding becomes three
    downsample = source["model.visual.downsample.weight"]
    weight, bias = (source[f"model.{PATCH}proj.{part}"] for part in ("weight", "bias"))
    pieces = fold_patch_embed(weight, bias, SETTINGS)
    for name, tensor in source.items():
        here = network_name(name)
        if ".q_proj." in name or ".k_proj." in name:
            tensor = half_form(tensor)
        elif name == "model.visual.downsample.weight":
            # the patches of a merged token one after the other, each with its channels
            places = [downsample[:, :, y, x] for y in (0, 1) for x in (0, 1)]
            tensor = torch.cat(places, dim=1)
        elif here.startswith(f"{PATCH}proj."):
            tensor = pieces[here.removeprefix(PATCH)]
        assert torch.equal(tensors.pop(here), tensor), name
    assert torch.equal(tensors.pop(f"{PATCH}motion.weight"), pieces["motion.weight"])
    assert not tensors


def test_one_tensor_at_a_time(layout, source) -> None:
    """Guards the memory of whoever reads 20 GB: nothing is read ahead, nothing is kept."""
    taken: list[str] = []

    def stream() -> Iterator[Named]:
        for name, tensor in source.items():
            taken.append(name)
            yield name, tensor

    for name, _ in convert(stream(), layout):
        assert network_name(taken[-1]) == name or name.startswith(PATCH)


def test_what_is_missing_is_known_at_the_end(layout, source) -> None:
    """Guards against half a checkpoint, in the names of the files; a part may come later."""
    older = older_names(source)
    del older["model.layers.0.self_attn.k_proj.bias"]
    with pytest.raises(WeightError, match=r"lacks 1 of 56 .*'model\.layers\.0\..*k_proj\.bias'"):
        list(convert(older.items(), layout))
    assert len(list(convert(older.items(), layout, whole=False))) == 56


def test_the_patch_embedding_remembers_its_other_half(layout, source) -> None:
    """Guards updates that bring the weight or the bias alone, which are folded together."""
    kept: dict[str, torch.Tensor] = {}
    weight, bias = (f"model.{PATCH}proj.{part}" for part in ("weight", "bias"))
    assert not list(convert([(weight, source[weight])], layout, False, kept))
    first = dict(convert([(bias, source[bias])], layout, False, kept))
    assert len(first) == 3
    second = dict(convert([(bias, source[bias] + 1)], layout, False, kept))
    difference = second[f"{PATCH}proj.bias"] - first[f"{PATCH}proj.bias"]
    torch.testing.assert_close(difference, torch.ones_like(difference), atol=1e-3, rtol=0)
    assert not list(convert([(bias, source[bias])], layout, False))


@pytest.mark.parametrize("wrapped_first", [False, True])
def test_the_wrapped_norm_is_the_last(layout, source, wrapped_first: bool) -> None:
    """Guards the form for MindIE, in which the wrapped norm was computed, not the plain one."""
    name = "model.language_model.layers.0.input_layernorm."
    pair = [(f"{name}weight", torch.zeros(256)), (f"{name}module.weight", torch.ones(256))]
    if wrapped_first:
        pair.reverse()
    found = list(convert(pair, layout, whole=False))
    assert {name for name, _ in found} == {f"{LAYER}input_layernorm.weight"}
    assert found[-1][1].all()


def test_every_tensor_of_a_quantized_row_is_reordered() -> None:
    """Guards scales and biases of q and k, which would belong to other rows; others stay."""
    folder = DATA / "w8a8_bf16"
    made = load_file(folder / "quant_model_weight_w8a8.safetensors")
    found = dict(convert(made.items(), layout_of(folder, quantized=True)))
    for part in ("q", "k", "v", "o"):
        layer = f"self_attn.{part}_proj."
        suffixes = [name.rpartition(".")[2] for name in made if f"layers.0.{layer}" in name]
        assert len(suffixes) >= 7
        for suffix in suffixes:
            tensor = made[f"{NEWER.text}layers.0.{layer}{suffix}"]
            rows = part in "qk" and tensor.numel() > 1
            expected = half_form(tensor) if rows else tensor
            assert torch.equal(found[f"{LAYER}{layer}{suffix}"], expected), (layer, suffix)


def test_what_trainers_add_is_left_out(layout, source) -> None:
    """Guards buffers in a checkpoint, which the network computes; an unknown tensor is refused."""
    extra = {"model.visual.rotary_pos_emb.inv_freq": torch.ones(8)}
    assert len(list(convert((source | extra).items(), layout))) == len(source) + 1
    with pytest.raises(WeightError, match="'model.visual.new.weight' of shape"):
        list(convert([("model.visual.new.weight", torch.ones(8))], layout))
    name = "model.visual.post_layernorm.weight"
    with pytest.raises(WeightError, match=r"shape \[8\]; config.json demands \[128\]"):
        list(convert([(name, torch.ones(8))], layout))


def test_a_tied_head_is_a_copy_or_is_refused(layout, source) -> None:
    """Guards a trained output projection against being left out in silence."""
    config = Glm4vConfig.from_dict(layout.config.to_dict())
    config.tie_word_embeddings = True
    tied = replace(layout, config=config)
    embedding = source["model.language_model.embed_tokens.weight"]
    same = source | {"lm_head.weight": embedding.clone()}
    assert HEAD not in dict(convert(same.items(), tied))
    with pytest.raises(WeightError, match="differs from its embedding"):
        list(convert((source | {"lm_head.weight": embedding + 1}).items(), tied))
