# SPDX-License-Identifier: Apache-2.0
"""The network as vLLM's loader fills it, on one of several ranks or stages too, with no engine."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from vllm.distributed import parallel_state
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from tests.checkpoints import TINY
from vllm_glm41v_npu.cpu.float_linear import SpacedLinearMethod
from vllm_glm41v_npu.models.rope import deinterleave

Load = Callable[..., nn.Module]
LARGEST_START = 16384.0
LARGEST = 65504.0


@pytest.fixture(scope="module")
def tiny(load: Load) -> nn.Module:
    return load(TINY)


def parameters(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: param.detach().clone() for name, param in network.named_parameters()}


@torch.inference_mode()
def outputs(network: nn.Module) -> dict[str, torch.Tensor]:
    """What each linear layer gives for the same random input."""
    found = {}
    for name, layer in network.named_modules():
        if isinstance(layer, LinearBase):
            generator = torch.Generator().manual_seed(1)
            x = torch.randn(5, layer.input_size, generator=generator)
            found[name] = layer(x)[0]
    return found


def update(network: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """As vLLM's runner does in `reload_weights`."""
    initialize_layerwise_reload(network)
    network.load_weights(iter(weights.items()))
    finalize_layerwise_reload(network, network.model_config)


@pytest.mark.parametrize("part", ["", "patch_embed.proj.weight", "patch_embed.proj.bias", "o_proj"])
def test_an_update_takes_the_other_weights(part: str, load: Load) -> None:
    """Guards updates in place: the network has the new numbers and no other.

    A part is whole layers: of a fused one, vLLM leaves what it did not see as memory was.
    """
    network, before = load(TINY), load(TINY)
    weights = load_file(TINY / "model.safetensors")
    changed = {name: tensor * 1.5 + 0.25 for name, tensor in weights.items() if part in name}
    update(network, changed)
    # A network that is filled for the first time with all of the new numbers.
    want = load(TINY)
    want.__dict__.pop("weight_loader")
    update(want, weights | changed)
    got = outputs(network)
    assert all(torch.equal(value, got[name]) for name, value in outputs(want).items())
    old, kept = outputs(before), parameters(want)
    assert any(not torch.equal(value, got[name]) for name, value in old.items())
    assert all(torch.equal(value, kept[name]) for name, value in parameters(network).items())


def test_rows_of_q_and_k_are_in_half_form(tiny: nn.Module) -> None:
    """Guards both: the network turns both as halves, whichever order they come in."""
    weights = load_file(TINY / "model.safetensors")
    layer = tiny.language_model.model.layers[1].self_attn
    name = "model.language_model.layers.1.self_attn.{}_proj.{}"
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, layer.qkv_proj.input_size, generator=generator)
    want = []
    for part in "qkv":
        rows = x @ weights[name.format(part, "weight")].T + weights[name.format(part, "bias")]
        if part != "v":
            rows = deinterleave(rows.T, layer.attn.head_size, 2 * (2 + 3 + 3)).T
        want.append(rows)
    torch.testing.assert_close(layer.qkv_proj(x)[0], torch.cat(want, dim=-1))


def fill_places(network: nn.Module, value: float, places: int = 2) -> torch.Tensor:
    """Embeddings of four tokens, with a picture of 2 tokens full of `value` at the middle ones."""
    ids = torch.arange(4)
    mask = torch.tensor([False, True, True, False])
    mask[3] = places == 3
    picture = torch.full((2, network.config.text_config.hidden_size), value)
    with torch.inference_mode():
        return network.embed_input_ids(ids, [picture], is_multimodal=mask)


def test_embeddings_of_pictures_are_cut_off_in_float16(load: Load, tiny: nn.Module) -> None:
    """Guards the start of the residual stream, which the bound on its growth counts on."""
    half = load(TINY, "float16")
    text = half.embed_input_ids(torch.arange(4))
    for value, kept in ((60000.0, LARGEST_START), (-60000.0, -LARGEST_START), (16000.0, 16000.0)):
        merged = fill_places(half, value)
        assert (merged[1:3] == kept).all()
        assert torch.equal(merged[[0, 3]], text[[0, 3]])
    assert (fill_places(tiny, 60000.0)[1:3] == 60000.0).all()


def test_places_without_an_embedding_are_refused(tiny: nn.Module) -> None:
    """Guards embeddings that would end up with another picture."""
    with pytest.raises(ValueError, match="have 2 embeddings, and the prompts have 3 places"):
        fill_places(tiny, 1.0, places=3)


def test_the_network_spaces_its_weights_where_it_helps(
    load: Load, tiny: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the call that gives the layers this method, and its numbers in the whole network."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    spaced = load(TINY)
    linears = [layer for layer in spaced.modules() if isinstance(layer, LinearBase)]
    chosen = [layer for layer in linears if isinstance(layer.quant_method, SpacedLinearMethod)]
    assert len(chosen) == len(linears) > 30  # every width of this checkpoint is a multiple of 64
    want = outputs(tiny)
    for name, value in outputs(spaced).items():
        torch.testing.assert_close(value, want[name])


def ranked(load: Load, monkeypatch: pytest.MonkeyPatch, rank: int, size: int) -> nn.Module:
    """The network of one of `size` tensor-parallel ranks, alone in this process."""
    with monkeypatch.context() as patch:
        patch.setattr(parallel_state._TP, "world_size", size)
        patch.setattr(parallel_state._TP, "rank_in_group", rank)
        return load(TINY)


def test_more_ranks_than_key_value_heads(
    load: Load, tiny: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards four ranks over two key-value heads, each of which two ranks keep."""
    whole = outputs(tiny)
    for rank in range(4):
        network = ranked(load, monkeypatch, rank, 4)
        for index, layer in enumerate(network.language_model.model.layers):
            attention = layer.self_attn
            head = attention.attn.head_size
            assert (attention.q_size, attention.kv_size) == (head, head)
            assert attention.attn.num_kv_heads == 1
            generator = torch.Generator().manual_seed(1)
            x = torch.randn(5, attention.qkv_proj.input_size, generator=generator)
            got, _ = attention.qkv_proj(x)
            q, k, v = whole[f"language_model.model.layers.{index}.self_attn.qkv_proj"].split(
                [4 * head, 2 * head, 2 * head], dim=-1
            )
            own = [q.chunk(4, -1)[rank], k.chunk(2, -1)[rank // 2], v.chunk(2, -1)[rank // 2]]
            torch.testing.assert_close(got, torch.cat(own, dim=-1))


def staged(load: Load, monkeypatch: pytest.MonkeyPatch, stage: int, **options: Any) -> nn.Module:
    """The network of one of two pipeline stages, alone in this process."""
    with monkeypatch.context() as patch:
        patch.setattr(parallel_state._PP, "world_size", 2)
        patch.setattr(parallel_state._PP, "rank_in_group", stage)
        patch.setattr(parallel_state._PP, "ranks", [1 - stage, 0] if stage else [0, 1])
        return load(TINY, "float16", **options)


@pytest.mark.parametrize("load_format", ["auto", "dummy"])
def test_float16_is_guarded_in_every_pipeline_stage(
    load_format: str, load: Load, tiny: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards both stages' layers and the last norm, for weights that only together overflow."""
    for stage in (0, 1):
        network = staged(load, monkeypatch, stage, load_format=load_format)
        decoder = network.language_model.model
        layers = list(decoder.stage_layers)
        assert 0 < len(layers) < len(decoder.layers) == 3
        # Enough for a third of the way: two norms of sqrt(128) * weight each, in three layers.
        weight = 1.01 * (LARGEST - LARGEST_START) / 6 / 128**0.5
        for layer in layers:
            for norm in (layer.post_self_attn_layernorm, layer.post_mlp_layernorm):
                nn.init.constant_(norm.weight, weight)
        after_loading(network, load_format)
        assert {layer.saturates for layer in layers} == {True}
        large = torch.full((2, 128), 20000.0).half()
        large[:, :64] = 60000.0  # twice that saturates, at 65,504
        with monkeypatch.context() as patch, torch.inference_mode():
            patch.setattr(parallel_state._PP, "world_size", 2)
            patch.setattr(parallel_state._PP, "rank_in_group", stage)
            patch.setattr(parallel_state._PP, "ranks", [1 - stage, 0] if stage else [0, 1])
            given = decoder.end(large.clone(), large.clone())
        if stage == 0:  # handed on as they are: the next stage adds them
            assert set(given.tensors) == {"hidden_states", "residual"}
        else:
            total = torch.full((2, 128), 40000.0)
            total[:, :64] = LARGEST
            want = total / total.square().mean(-1, keepdim=True).sqrt() * decoder.norm.weight
            torch.testing.assert_close(given, want, atol=1e-2, rtol=1e-2, check_dtype=False)


def after_loading(network: nn.Module, load_format: str) -> None:
    """What looks at the weights once they are there."""
    if load_format == "auto":
        weights = network.language_model.model.state_dict()
        name = next(name for name in weights if name.endswith("input_layernorm.weight"))
        network.load_weights([(f"model.language_model.{name}", weights[name].clone())])
    else:
        network.eval()


@torch.inference_mode()
def test_halves_of_a_batch_differ_by_rounding_alone(tiny: nn.Module) -> None:
    """Guards micro batch's claim with vLLM's product on CPUs, oneDNN's.

    The engine's test takes torch's product, with which no bit differs; oneDNN's may sum the last
    rows of a batch in another order, so that a cut batch differs in the last bits.
    """
    generator = torch.Generator().manual_seed(2)
    for layer in tiny.language_model.modules():
        if isinstance(layer, LinearBase):
            x = torch.randn(601, layer.input_size, generator=generator)
            halves = torch.cat([layer(part)[0] for part in x.split(301)])
            torch.testing.assert_close(halves, layer(x)[0], atol=1e-5, rtol=1e-5)


def graph_inputs(*grids: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    patches = sum(t * h * w for t, h, w in grids)
    pixels = torch.randint(
        256, (patches, 588), generator=torch.Generator().manual_seed(patches), dtype=torch.uint8
    )
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor(grids)}


def test_sizes_of_the_encoders_graphs(tiny: nn.Module) -> None:
    """Guards the budgets: from one small picture to what a step or a prompt holds."""

    def budget(step: int, longest: int) -> tuple[int, int]:
        network = SimpleNamespace(model_config=SimpleNamespace(max_model_len=longest))
        config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_batched_tokens=step))
        return type(tiny).get_encoder_cudagraph_budget_range(network, config)

    assert budget(2048, 8192) == (64, 2048)
    assert budget(8192, 2048) == (64, 2048)
    assert budget(32, 8192) == budget(8192, 32) == (64, 64)


@torch.inference_mode()
def test_pictures_are_chosen_and_replayed_as_they_are(tiny: nn.Module) -> None:
    """Guards which patches belong to which picture, and the buffers of a replay."""
    inputs = graph_inputs((1, 4, 6), (1, 2, 2), (1, 8, 4))
    specs = tiny.get_encoder_cudagraph_item_specs(inputs)
    assert [(spec.input_size, spec.output_tokens) for spec in specs] == [(24, 6), (4, 1), (32, 8)]
    chosen = tiny.select_encoder_cudagraph_items(inputs, [2, 0])
    pixels = inputs["pixel_values"]
    assert torch.equal(chosen["pixel_values"], torch.cat([pixels[28:], pixels[:24]]))
    assert chosen["image_grid_thw"].tolist() == [[1, 8, 4], [1, 4, 6]]
    assert tiny.select_encoder_cudagraph_items(inputs, [])["pixel_values"].shape == (0, 588)

    buffers = tiny.prepare_encoder_cudagraph_replay_buffers(chosen, 4, 1).values
    assert buffers["cu_seqlens"].tolist() == [0, 32, 56]
    replayed = tiny.encoder_cudagraph_forward(buffers)
    assert torch.equal(replayed, tiny.encoder_eager_forward(chosen))
    alone = [
        tiny.encoder_eager_forward(tiny.select_encoder_cudagraph_items(inputs, [i])) for i in (2, 0)
    ]
    torch.testing.assert_close(replayed, torch.cat(alone), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_capture_has_room_for_its_budget(
    tiny: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the captured buffers: all patches of the budget, in as many sequences as pictures."""
    # On a CPU, oneDNN's copy of the weight is the only one after loading.
    weight = nn.Parameter(torch.empty(128, 588), requires_grad=False)
    monkeypatch.setattr(tiny.visual.patch_embed.proj, "weight", weight)
    values = tiny.prepare_encoder_cudagraph_capture_inputs(
        32, 3, 1, torch.device("cpu"), torch.float32
    ).values
    assert values["pixel_values"].shape == (128, 588)
    assert values["positions"].shape[0] == values["cos"].shape[0] == 128
    assert values["cu_seqlens"].tolist() == [0, 42, 85, 128]
    assert tiny.encoder_cudagraph_forward(values).shape == (32, 128)


def test_a_captured_tower_is_refused_where_it_would_keep_its_sizes(tiny: nn.Module) -> None:
    """Guards CPUs and Atlas 310P, whose attention is captured with its lengths."""
    with pytest.raises(ValueError, match="cudagraph_mm_encoder is set, and on CPU a captured"):
        tiny.get_encoder_cudagraph_config()
