# SPDX-License-Identifier: Apache-2.0
"""Which rank gets which numbers, by the names and in the layouts of this network."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from tests.quant.cases import write_mindie
from vllm_glm41v_npu.checkpoint.names import network_name
from vllm_glm41v_npu.checkpoint.shapes import checkpoint_shapes, uneven
from vllm_glm41v_npu.cli.compress import shard_checkpoint
from vllm_glm41v_npu.processing.hf_config import register_config
from vllm_glm41v_npu.quant.w8a8sc.ranks import ShardingError, Splitter, check_split, split_of

FIXTURE = Path(__file__).parents[1] / "data" / "msmodelslim" / "w8a8s_fp16"
WEIGHTS = "quant_model_weight_w8a8s.safetensors"
LAYER = "language_model.model.layers.1."
ON_DISK = "model.language_model.layers.1."
HEAD, ROTATED = 64, 32

Ranks = dict[int, dict[str, torch.Tensor]]


def config_of(folder: Path) -> Any:
    register_config()
    return AutoConfig.from_pretrained(folder)


def shards(folder: Path, tp_size: int) -> Ranks:
    found: Ranks = defaultdict(dict)

    def keep(rank: int, name: str, tensor: torch.Tensor) -> None:
        assert name not in found[rank]
        found[rank][name] = tensor

    shard_checkpoint(folder, config_of(folder), tp_size, keep)
    assert sorted(found) == list(range(tp_size))
    return found


@pytest.fixture(scope="module")
def source() -> dict[str, torch.Tensor]:
    return load_file(FIXTURE / WEIGHTS)


@pytest.fixture(scope="module", params=[1, 2])
def split(request: pytest.FixtureRequest) -> Ranks:
    return shards(FIXTURE, request.param)


@pytest.fixture
def changed(tmp_path: Path, source: dict[str, torch.Tensor]):
    """Write the fixture with some tensors replaced, or removed where None."""

    def change(replacements: dict[str, torch.Tensor | None]) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(FIXTURE, folder)
        tensors = {name: t for name, t in (source | replacements).items() if t is not None}
        save_file(tensors, folder / WEIGHTS)
        return folder

    return change


def half_form(rows: torch.Tensor) -> torch.Tensor:
    """The rows of q or k as `models.rope` puts them, head by head and row by row."""
    even, odd = range(0, ROTATED, 2), range(1, ROTATED, 2)
    middle = (ROTATED + HEAD) // 2
    order = [*even, *range(ROTATED, middle), *odd, *range(middle, HEAD)]
    heads = [rows[start : start + HEAD] for start in range(0, len(rows), HEAD)]
    return torch.cat([head[order] for head in heads])


@pytest.mark.parametrize("suffix", ["weight", "bias", "deq_scale", "quant_bias"])
def test_qkv_is_fused_in_half_form_for_each_rank(source, split: Ranks, suffix: str) -> None:
    """Guards the rotary rows: a wrong order gives fluent nonsense, and no error."""
    q, k, v = (source[f"{ON_DISK}self_attn.{part}_proj.{suffix}"] for part in "qkv")
    q, k = half_form(q), half_form(k)
    size = len(split)
    for rank, tensors in split.items():
        share = [x[rank * len(x) // size : (rank + 1) * len(x) // size] for x in (q, k, v)]
        assert torch.equal(tensors[f"{LAYER}self_attn.qkv_proj.{suffix}"], torch.cat(share))


@pytest.mark.parametrize("suffix", ["weight", "deq_scale", "quant_bias"])
def test_gate_up_is_halved_on_each_side(source, split: Ranks, suffix: str) -> None:
    """Guards SwiGLU: each rank's gates have to meet their own ups."""
    gate, up = source[f"{ON_DISK}mlp.gate_up_proj.{suffix}"].split(512)
    rows = 512 // len(split)
    for rank, tensors in split.items():
        mine = slice(rank * rows, (rank + 1) * rows)
        found = tensors[f"{LAYER}mlp.gate_up_proj.{suffix}"]
        assert torch.equal(found, torch.cat((gate[mine], up[mine])))


def test_o_proj_is_split_by_inputs_and_has_one_bias(source, split: Ranks) -> None:
    """Guards the sum over ranks, to which a bias may be added once."""
    name = "self_attn.o_proj."
    weights = [tensors[f"{LAYER}{name}weight"] for tensors in split.values()]
    assert torch.equal(torch.cat(weights, dim=1), source[f"{ON_DISK}{name}weight"])
    biases = [tensors[f"{LAYER}{name}quant_bias"] for tensors in split.values()]
    assert torch.equal(sum(biases), source[f"{ON_DISK}{name}quant_bias"])
    assert not any(bias.any() for bias in biases[1:])
    for tensors in split.values():
        assert torch.equal(tensors[f"{LAYER}{name}deq_scale"], source[f"{ON_DISK}{name}deq_scale"])


def test_scales_of_a_whole_layer_keep_their_value(source, split: Ranks) -> None:
    """Guards the activations' quantization: float32 as on disk, and the offset an int8."""
    for tensors in split.values():
        for layer, first in (("self_attn.qkv_proj", "self_attn.q_proj"), ("mlp.gate_up_proj",) * 2):
            scale = tensors[f"{LAYER}{layer}.input_scale"]
            assert torch.equal(scale, source[f"{ON_DISK}{first}.input_scale"])
            offset = tensors[f"{LAYER}{layer}.input_offset"]
            assert offset.dtype == torch.int8
            assert offset == source[f"{ON_DISK}{first}.input_offset"]


def test_vision_and_vocabulary(source, split: Ranks) -> None:
    """Guards the float parts: q, k and v in one tensor, gates and ups in two, padded rows."""
    size = len(split)
    q, k, v = source["model.visual.blocks.0.attn.qkv.weight"].chunk(3)
    block, head = "model.visual.blocks.0.mlp.", "language_model.lm_head.weight"
    for rank, tensors in split.items():
        share = [x.chunk(size)[rank] for x in (q, k, v)]
        assert torch.equal(tensors["visual.blocks.0.attn.qkv.weight"], torch.cat(share))
        pair = [source[f"{block}{part}_proj.weight"].chunk(size)[rank] for part in ("gate", "up")]
        assert torch.equal(tensors["visual.blocks.0.mlp.gate_up_proj.weight"], torch.cat(pair))
        down = source[f"{block}down_proj.weight"].chunk(size, dim=1)[rank]
        assert torch.equal(tensors["visual.blocks.0.mlp.down_proj.weight"], down)
        proj = source["model.visual.merger.proj.weight"].chunk(size)[rank]
        assert torch.equal(tensors["visual.merger.proj.weight"], proj)
        assert torch.equal(tensors[head], source["lm_head.weight"].chunk(size)[rank])


def test_every_parameter_is_there_and_none_else(split: Ranks) -> None:
    """Guards sharded_state, which takes neither more nor fewer names than the network has."""
    config = config_of(FIXTURE)
    fused = {"q_proj": "qkv_proj", "gate_proj": "gate_up_proj"}
    expected = {"visual.patch_embed.motion.weight"}
    for name in checkpoint_shapes(config):
        layer, _, suffix = name.rpartition(".")
        parent, _, last = layer.rpartition(".")
        if last in ("k_proj", "v_proj", "up_proj"):
            continue
        layer = f"{parent}.{fused.get(last, last)}"
        expected.add(f"{layer}.{suffix}")
        quantized = last in ("q_proj", "o_proj", "gate_up_proj") and suffix == "weight"
        if quantized and name.startswith("language_model.model.layers."):
            scales = ("input_scale", "input_offset", "deq_scale", "quant_bias")
            expected |= {f"{layer}.{scale}" for scale in scales}
    for index in range(2):
        attention = f"language_model.model.layers.{index}.self_attn.attn."
        expected |= {f"{attention}_{part}_scale" for part in ("k", "v", "q", "prob")}
    for tensors in split.values():
        assert tensors.keys() == expected


def test_norm_biases_that_are_not_zero_stay(source, changed) -> None:
    """Guards a checkpoint with shifted activations: vllm-ascend then gives every norm a bias."""
    name = f"{ON_DISK}input_layernorm.bias"
    without = f"{ON_DISK}post_mlp_layernorm.bias"
    found = shards(changed({name: torch.full_like(source[name], 0.5), without: None}), 2)
    for tensors in found.values():
        assert torch.equal(tensors[network_name(name)], torch.full((256,), 0.5))
        norms = [key for key in tensors if "norm" in key and key.endswith(".weight")]
        assert len(norms) == 2 * 4 + 1 + 2 * 2 + 2 + 1
        assert all(key.replace(".weight", ".bias") in tensors for key in norms)
        assert not tensors[network_name(without)].any()


def test_a_vocabulary_that_is_no_multiple_is_padded(source, changed) -> None:
    """Guards the last rank, whose share is filled up with zeros as vLLM does."""
    names = ("lm_head.weight", "model.language_model.embed_tokens.weight")
    folder = changed({name: source[name][:300].clone() for name in names})
    config = config_of(folder)
    config.text_config.vocab_size = 300
    found: Ranks = defaultdict(dict)
    shard_checkpoint(folder, config, 2, lambda rank, name, t: found[rank].update({name: t}))
    first, last = (found[rank]["language_model.model.embed_tokens.weight"] for rank in (0, 1))
    assert first.shape == last.shape == (160, 256)
    assert torch.equal(torch.cat((first, last))[:300], source[names[1]][:300])
    assert not last[140:].any()


def test_two_ranks_can_share_one_key_value_head() -> None:
    """Guards grouped-query attention with more ranks than heads: both get the same one."""
    config = config_of(FIXTURE)
    config.text_config.num_key_value_heads = 1
    found: dict[int, torch.Tensor] = {}
    splitter = Splitter(config, 2, lambda rank, name, t: found.update({rank: t}))
    q, k, v = torch.arange(256), torch.arange(1000, 1064), torch.arange(2000, 2064)
    for part, rows in zip("qkv", (q, k, v), strict=True):
        splitter.add(f"{LAYER}self_attn.{part}_proj.deq_scale", rows)
    for rank in (0, 1):
        mine = q[rank * 128 : (rank + 1) * 128]
        assert torch.equal(found[rank], torch.cat((mine, k, v)))


def test_sizes_that_do_not_divide_are_named() -> None:
    """Guards against a share of a head."""
    with pytest.raises(ShardingError, match="4 attention heads.*3 ranks cannot share"):
        check_split(config_of(FIXTURE), 3)


def test_key_value_heads_that_do_not_divide_are_named() -> None:
    """Guards a split of 2 key-value heads over 3 ranks, which all other sizes would allow."""
    sizes = dict.fromkeys(("num_attention_heads", "intermediate_size", "num_heads"), 12)
    parts = SimpleNamespace(**sizes, num_key_value_heads=2, out_hidden_size=12)
    config = SimpleNamespace(text_config=parts, vision_config=parts)
    assert {ranks: uneven(config, ranks) for ranks in (1, 2, 3, 4)} == {
        1: [], 2: [], 3: ["2 key-value heads"], 4: [],
    }  # fmt: skip


def test_what_cannot_be_placed_is_named(source, changed) -> None:
    """Guards against tensors that are dropped: unequal scales, missing parts, unknown layers."""
    scale = f"{ON_DISK}self_attn.k_proj.input_scale"
    with pytest.raises(ShardingError, match="qkv_proj.input_scale differ"):
        shards(changed({scale: source[scale] * 2}), 1)
    with pytest.raises(ShardingError, match="'visual.new' is split"):
        split_of("visual.new")


def test_a_missing_part_is_named(changed) -> None:
    """Guards a fused layer against one of its parts being random."""
    name = f"{ON_DISK}self_attn.k_proj.quant_bias"
    with pytest.raises(ShardingError, match="only a part of .*qkv_proj.quant_bias"):
        shards(changed({name: None}), 1)


@pytest.mark.parametrize("biased", [False, True])
def test_the_form_for_mindie_is_split_alike(tmp_path: Path, source, biased: bool) -> None:
    """Guards norms that are there twice, of which a rank would get both."""
    plain = Path(shutil.copytree(FIXTURE, tmp_path / "plain"))
    if biased:
        norms = (name for name in source if name.endswith("layernorm.bias"))
        save_file(source | {name: source[name] + 0.5 for name in norms}, plain / WEIGHTS)
    mindie = write_mindie(plain, tmp_path / "mindie")
    want, got = shards(plain, 2), shards(mindie, 2)
    for rank, tensors in want.items():
        assert tensors.keys() == got[rank].keys()
        assert all(torch.equal(tensor, got[rank][name]) for name, tensor in tensors.items())
