# SPDX-License-Identifier: Apache-2.0
"""msModelSlim's checkpoints in the engine, beside the published formulas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vllm import LLM

from tests.engines import engine, network_call
from tests.quant.cases import DATA, OPTIONS, check_logits, generate, write_mixed
from tests.quant.reference import Checkpoint, array, deq_scale, dynamic_linear, static_integers


@dataclass
class Loaded:
    llm: LLM
    checkpoint: Checkpoint


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixed(tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="module", params=["w8a8_bf16", "w8a8s_fp16", "mixed"])
def loaded(request: pytest.FixtureRequest, mixed: Path) -> Iterator[Loaded]:
    path = mixed if request.param == "mixed" else DATA / request.param
    with engine(path, **OPTIONS) as llm:
        yield Loaded(llm, Checkpoint(path))


def test_logits_equal_the_reference(loaded: Loaded) -> None:
    """Guards the whole path: which tensors go where, rope rows, biases, within 1e-3."""
    check_logits(generate(loaded.llm), loaded.checkpoint)


def test_the_description_selects_the_method(loaded: Loaded) -> None:
    """Guards against loading as float where the flag is left out."""
    assert loaded.llm.llm_engine.vllm_config.model_config.quantization == "ascend"


def half_form(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k as the network keeps them: even rotary ones, rest, odd rotary ones, rest."""
    split = rows.reshape(heads, 64, *rows.shape[1:])  # [heads, head size, ...]
    order = [*range(0, 32, 2), *range(32, 48), *range(1, 32, 2), *range(48, 64)]
    return split[:, order].reshape(rows.shape)


def parts_of(name: str, checkpoint: Checkpoint) -> list[str]:
    """The layers on disk of one in the network, by msModelSlim's names."""
    name = name.replace("language_model.model.", "model.language_model.")
    name = name.replace("visual.", "model.visual.")
    fused = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    if f"{name}.weight" in checkpoint.tensors:
        return [name]
    parent, _, last = name.rpartition(".")
    return [f"{parent}.{part}" for part in fused[last]]


def fused_layer(parts: list[str], checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """One layer's tensors, from those on disk."""
    heads = {"q_proj": 4, "k_proj": 2}
    found: dict[str, list[np.ndarray]] = {}
    for part in parts:
        for suffix, value in checkpoint.layer(part).items():
            last = part.rpartition(".")[2]
            rotates = last in heads and len(value) > 1
            value = half_form(value, heads[last]) if rotates else value
            found.setdefault(suffix, []).append(value)
    shared = ("input_scale", "input_offset")
    return {key: v[0] if key in shared else np.concatenate(v) for key, v in found.items()}


def test_each_layer_equals_the_formula(loaded: Loaded) -> None:
    """Guards every quantized layer: the integer part exactly, and the result to the last bit."""
    layers = network_call(loaded.llm, quantized_layers)
    on_disk = loaded.checkpoint.layers()
    assert sum(len(parts_of(name, loaded.checkpoint)) for name in layers) == len(on_disk)
    rng = np.random.default_rng(0)
    for name, kind in layers.items():
        parts = parts_of(name, loaded.checkpoint)
        assert {on_disk[part] for part in parts} == {kind}
        layer = fused_layer(parts, loaded.checkpoint)
        x = rng.normal(size=(7, layer["weight"].shape[1])).astype(np.float32)
        got = network_call(loaded.llm, lambda network: run(network, name, x))  # noqa: B023
        if kind == "W8A8_DYNAMIC":
            np.testing.assert_allclose(got, dynamic_linear(x, layer), rtol=1e-6, atol=1e-6)
            continue
        want, scale = static_integers(x, layer), deq_scale(layer)
        np.testing.assert_array_equal(np.rint(got / scale.astype(np.float64)), want)
        np.testing.assert_array_equal(got, (want * scale.astype(np.float64)).astype(np.float32))


def quantized_layers(network: Any) -> dict[str, str]:
    """Name to type."""
    layers = network.named_modules()
    return {name: m.quant_method.kind for name, m in layers if hasattr(m, "packed_weight")}


@torch.inference_mode()
def run(network: Any, name: str, x: np.ndarray) -> np.ndarray:
    """What a layer returns, run as it is and under torch.compile, which may not break its graph."""
    layer = network.get_submodule(name)
    (eager, _), value = layer(torch.from_numpy(x)), torch.from_numpy(x)
    torch._dynamo.reset()  # each layer is a recompilation of the same code
    with torch._dynamo.config.patch(disable=False):
        traced, _ = torch.compile(layer.forward, fullgraph=True, backend="eager")(value)
    assert torch.equal(eager, traced)
    return array(eager)


def test_weights_are_kept_once(loaded: Loaded) -> None:
    """Guards against the loaded int8 weights staying beside the packed ones."""

    def sizes(network: Any) -> list[tuple[str, int, int]]:
        return [
            (name, sum(p.nbytes for p in layer.parameters()), layer.packed_weight.nbytes)
            for name, layer in network.named_modules()
            if hasattr(layer, "packed_weight")
        ]

    for name, kept, packed in network_call(loaded.llm, sizes):
        assert kept <= packed + 4 * 1024, name  # a float bias beside
