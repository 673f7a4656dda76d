# SPDX-License-Identifier: Apache-2.0
"""Forms of a checkpoint that users have: each gives the numbers of the plain one.

vLLM's loader fills the network here, in this process and with no engine around it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from vllm.model_executor.layers.linear import LinearBase

from tests.models.other_tools import TOOLS, write
from tests.quant.cases import DATA, write_mindie
from vllm_glm41v_npu.models.convert import WeightError

Load = Callable[..., nn.Module]
Tensors = dict[str, torch.Tensor]
HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"


@pytest.fixture(scope="module")
def source(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("wide-heads")


def changed(source: Path, folder: Path, change: Callable[[Tensors], Tensors], **config) -> Path:
    """A copy with other tensors, and other keys in config.json."""
    shutil.copytree(source, folder)
    tensors = change(load_file(folder / "model.safetensors"))
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    content = json.loads((folder / "config.json").read_text())
    for key, value in config.items():
        content.pop(key, None) if value is None else content.update({key: value})
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def parameters(network: nn.Module) -> Tensors:
    return {name: param.detach().clone() for name, param in network.named_parameters()}


@torch.inference_mode()
def outputs(network: nn.Module, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    """Compute what each linear layer of the decoder gives for the same random input."""
    found = {}
    for name, layer in network.language_model.model.named_modules():
        if isinstance(layer, LinearBase):
            generator = torch.Generator().manual_seed(1)
            x = torch.randn(5, layer.input_size_per_partition, generator=generator)
            found[name] = layer(x.to(dtype))[0].float()
    return found


@pytest.mark.parametrize("form", TOOLS)
def test_other_tools_weights_are_what_they_stand_for(
    form: str, load: Load, source: Path, tmp_path: Path
) -> None:
    """Guards the rows of q and k, which are packed, grouped or transposed by other tools."""
    write(source, form, tmp_path / "quantized", tmp_path / "float")
    got = outputs(load(tmp_path / "quantized", "bfloat16"))
    want = outputs(load(tmp_path / "float", "bfloat16"))
    assert len(want) == 4 * 3
    for name, value in want.items():
        assert (got[name] - value).abs().max() < 0.03 * value.abs().max(), name


@pytest.mark.parametrize("name", ["w8a8_bf16", "w8a8s_fp16"])
def test_the_form_for_mindie(name: str, load: Load, tmp_path: Path) -> None:
    """Guards the form that MindIE's users have: every number is the plain form's."""
    plain, mindie = load(DATA / name), load(write_mindie(DATA / name, tmp_path / "mindie"))
    pairs = (
        (parameters(plain), parameters(mindie)),
        (outputs(plain, torch.float32), outputs(mindie, torch.float32)),
    )
    for want, got in pairs:
        assert want.keys() == got.keys()
        assert all(torch.equal(tensor, got[key]) for key, tensor in want.items())


def split(tensors: Tensors) -> Tensors:
    """The decoder's gate and up projections as two tensors."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        if "language_model" in name and ".gate_up_proj." in name:
            gate, up = tensor.chunk(2)
            found[name.replace("gate_up", "gate")], found[name.replace("gate_up", "up")] = gate, up
        else:
            found[name] = tensor
    return found


def test_split_gate_and_up(load: Load, source: Path, tmp_path: Path) -> None:
    """Guards what trainers write whose kernels take the two apart."""
    want = parameters(load(source))
    got = parameters(load(changed(source, tmp_path / "split", split)))
    assert want.keys() == got.keys()
    assert all(torch.equal(tensor, got[name]) for name, tensor in want.items())


def test_a_lost_half_is_named(load: Load, source: Path, tmp_path: Path) -> None:
    """Guards half a layer that would stay as it was made."""
    lost = "model.language_model.layers.1.mlp.up_proj.weight"

    def lose(tensors: Tensors) -> Tensors:
        return {name: tensor for name, tensor in split(tensors).items() if name != lost}

    folder = changed(source, tmp_path / "lost", lose)
    with pytest.raises(WeightError, match=rf"lacks 1 of .*: '{lost}' \[512, 256\]\."):
        load(folder)


def tie(tensors: Tensors, head: torch.Tensor | None = None) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != HEAD} | (
        {} if head is None else {HEAD: head}
    )


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("level", ["top", "text"])
def test_a_tied_output_projection(
    copied: bool, level: str, load: Load, source: Path, tmp_path: Path
) -> None:
    """Guards ties at either level, and the copy of the embedding that some trainers write."""

    def change(tensors: Tensors) -> Tensors:
        return tie(tensors, tensors[EMBEDDING].clone() if copied else None)

    text = json.loads((source / "config.json").read_text())["text_config"]
    top = {"tie_word_embeddings": True if level == "top" else None}
    text["tie_word_embeddings"] = level == "text"
    if level == "top":
        del text["tie_word_embeddings"]
    network = load(changed(source, tmp_path / "tied", change, text_config=text, **top))
    assert network.language_model.lm_head is network.language_model.model.embed_tokens
    hidden = torch.randn(5, 256, generator=torch.Generator().manual_seed(0))
    embedding = load_file(source / "model.safetensors")[EMBEDDING]
    with torch.inference_mode():
        torch.testing.assert_close(network.compute_logits(hidden), hidden @ embedding.T)


def test_an_output_projection_beside_tied_embeddings_is_refused(
    load: Load, source: Path, tmp_path: Path
) -> None:
    """Guards against two different output projections, of which one would win in silence."""
    folder = changed(source, tmp_path / "two", lambda tensors: tensors, tie_word_embeddings=True)
    with pytest.raises(WeightError, match="differs from its embedding, .* tie_word_embeddings"):
        load(folder)
