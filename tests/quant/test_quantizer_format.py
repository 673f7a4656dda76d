# SPDX-License-Identifier: Apache-2.0
"""What `quantize` writes, beside what msModelSlim wrote for the same float checkpoint."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Glm4vForConditionalGeneration

from tests.quant.reference import LINEAR, Checkpoint, array, deq_scale
from vllm_glm41v_npu.checkpoint import folder as on_disk
from vllm_glm41v_npu.checkpoint.description import Description
from vllm_glm41v_npu.checkpoint.shapes import checkpoint_shapes
from vllm_glm41v_npu.processing.hf_config import Glm4vConfig
from vllm_glm41v_npu.quant.quantizer import Report, Request, calibration
from vllm_glm41v_npu.quant.quantizer import quantize as quantize
from vllm_glm41v_npu.quant.validation import validate

DATA = Path(__file__).parents[1] / "data" / "msmodelslim"
THEIRS = {"W8A8": "w8a8_bf16", "W8A8S": "w8a8s_fp16"}
DTYPES = {"W8A8": torch.bfloat16, "W8A8S": torch.float16, "W8A8_DYNAMIC": torch.float16}
NORMS = {"q_proj": "input", "k_proj": "input", "v_proj": "input", "gate_up_proj": "post_attention"}

Run = tuple[Path, Path, Report]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Source, output and report of a type."""

    @functools.cache
    def quantized(kind: str) -> Run:
        folder = tmp_path_factory.mktemp(kind)
        source = write_source(folder / "source", DTYPES[kind])
        output = folder / "output"
        return source, output, quantize(Request(source, output, kind))

    return quantized


def write_source(folder: Path, dtype: torch.dtype) -> Path:
    """The float checkpoint that msModelSlim was given, in `dtype`, with its tokenizer."""
    shutil.copytree(DATA / "source_fp16", folder)
    for file in (DATA / "w8a8s_fp16").iterdir():
        if not file.name.startswith(("quant_", "config")):
            shutil.copy(file, folder)
    if dtype != torch.float16:
        tensors = load_file(folder / "model.safetensors")
        save_file({k: v.to(dtype) for k, v in tensors.items()}, folder / "model.safetensors")
        config = (folder / "config.json").read_text()
        (folder / "config.json").write_text(config.replace("float16", str(dtype)[6:]))
    return folder


def spurious_biases(source: Path, names: Iterable[str]) -> set[str]:
    """The zeros that msModelSlim adds to norms that have no bias."""
    before = load_file(source / "model.safetensors")
    return {name for name in names if name.endswith(".bias") and name not in before}


def restored(layer: dict[str, np.ndarray], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The weights that the integers stand for, float32 [N, K], and the size of a step [N, 1]."""
    if kind == "W8A8S":
        step = (deq_scale(layer) / layer["input_scale"])[:, None]
    else:
        step = layer["weight_scale"]
    return layer["weight"] * step, step


def smoothing(source: dict[str, Tensor], ours: Checkpoint, name: str) -> np.ndarray:
    """By what a layer's inputs were divided, float32 [K]."""
    parent, _, part = name.rpartition(".")
    if part not in NORMS:
        return np.ones(source[f"{name}.weight"].shape[1], np.float32)
    norm = f"{parent.rpartition('.')[0]}.{NORMS[part]}_layernorm.weight"
    return (source[norm].float() / ours.tensors[norm].float()).numpy()


@pytest.mark.parametrize("kind", THEIRS)
def test_tensors_and_description_are_those_of_msmodelslim(run, kind):
    """Guards against a name, a dtype or a shape that msModelSlim's readers do not expect.

    Its biases of zeros for norms that have none are the one thing left out.
    """
    source, output, _ = run(kind)
    ours, theirs = Checkpoint(output), Checkpoint(DATA / THEIRS[kind])
    for name in spurious_biases(source, theirs.description):
        del theirs.description[name]
        theirs.tensors.pop(name, None)
    assert ours.description == theirs.description
    assert {name: (t.dtype, t.shape) for name, t in ours.tensors.items()} == {
        name: (t.dtype, t.shape) for name, t in theirs.tensors.items()
    }


@pytest.mark.parametrize("kind", THEIRS)
def test_other_files_are_those_of_msmodelslim(run, kind):
    """Guards against a checkpoint that lacks a file, or whose config.json names another dtype."""
    output, theirs = run(kind)[1], DATA / THEIRS[kind]
    names = {path.name for path in theirs.iterdir()} | {"quantization_report.json"}
    assert {path.name for path in output.iterdir()} == names
    ours, config = (json.loads((path / "config.json").read_text()) for path in (output, theirs))
    assert ours == config


@pytest.mark.parametrize("kind", DTYPES)
def test_loader_accepts_it(run, kind):
    """Guards against a checkpoint that the check before loading refuses."""
    output = run(kind)[1]
    config = Glm4vConfig.from_dict(json.loads((output / "config.json").read_text()))
    description = Description.read(output)
    assert description is not None
    validate(
        on_disk.Checkpoint(output),
        description,
        checkpoint_shapes(config),
        str(DTYPES[kind])[6:],
    )


@pytest.mark.parametrize("kind", DTYPES)
def test_integers_are_the_smoothed_weights(run, kind):
    """Guards against weights that are rounded with another scale than the file's, or not
    smoothed by what their norm was divided by.

    W8A8S moves weights to make up for others' rounding, so there it is the bulk that is near.
    """
    source, output, _ = run(kind)
    before, ours = load_file(source / "model.safetensors"), Checkpoint(output)
    for name in ours.layers():
        layer = ours.layer(name)
        got, step = restored(layer, kind)
        want = before[f"{name}.weight"].float().numpy() * smoothing(before, ours, name)
        off = np.abs(got - want) / step
        if kind == "W8A8S":
            assert np.median(off) < 0.5
            assert np.mean((layer["weight"] < -8) | (layer["weight"] > 7)) <= 0.01
        else:
            assert off.max() < 0.5 + 1e-3


@pytest.mark.parametrize("kind", THEIRS)
def test_published_formulas(run, kind):
    """Guards against scales and biases that are not those the products need."""
    ours = Checkpoint(run(kind)[1])
    for name in ours.layers():
        layer = ours.layer(name)
        deq = deq_scale(layer)
        if "weight_scale" in layer:
            assert np.array_equal(deq, layer["input_scale"] * layer["weight_scale"][:, 0])
            assert not layer["weight_offset"].any()
        bias = layer.get("bias", np.zeros_like(deq)).astype(np.float64)
        sums = layer["weight"].astype(np.int64).sum(1)
        assert np.array_equal(
            layer["quant_bias"], np.round(bias / deq - sums * layer["input_offset"])
        )
        assert deq.min() > 0
        if name.endswith("k_proj"):
            for other in ("q_proj", "v_proj"):
                part = ours.layer(name.replace("k_proj", other))
                assert part["input_scale"] == layer["input_scale"]
                assert part["input_offset"] == layer["input_offset"]


def test_dynamic_layers_have_no_static_tensors(run):
    """Guards against tensors that vllm-ascend's W8A8_DYNAMIC has no parameter for."""
    ours = Checkpoint(run("W8A8_DYNAMIC")[1])
    for name in ours.layers():
        assert set(ours.layer(name)) - {"bias"} == {"weight", "weight_scale", "weight_offset"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Of every linear layer of the decoder, for conversations that calibrated nothing."""
    source = write_source(tmp_path_factory.mktemp("inputs") / "source", torch.float16)
    network = Glm4vForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    seen: dict[str, list[Tensor]] = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            record = seen.setdefault(name, [])
            module.register_forward_pre_hook(lambda _, x, to=record: to.append(x[0][0, ::4]))
    with torch.inference_mode():
        for sample in calibration.load(source, None, count=10, seed=1).samples:
            network(**sample)
    return {name: torch.cat(rows) for name, rows in seen.items()}


def layer_error(checkpoint: Checkpoint, before: dict[str, Tensor], name: str, x: Tensor) -> float:
    """norm(quantized - float) / norm(float) of a layer's output, without its bias."""
    kind, layer = checkpoint.layers()[name], checkpoint.layer(name)
    want = array(x @ before[f"{name}.weight"].float().T)
    got = LINEAR[kind](x.numpy() / smoothing(before, checkpoint, name), layer)
    got -= layer.get("bias", np.float32(0))
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("kind", THEIRS)
def test_layer_errors_are_no_worse_than_msmodelslims(run, inputs, kind):
    """Guards the accuracy of every layer, on pictures that neither of the two calibrated on."""
    source, output, _ = run(kind)
    before = load_file(source / "model.safetensors")
    ours, theirs = Checkpoint(output), Checkpoint(DATA / THEIRS[kind])
    for name in ours.layers():
        errors = [layer_error(one, before, name, inputs[name]) for one in (ours, theirs)]
        print(f"{kind} {name}: {errors[0]:.4f}, msModelSlim's {errors[1]:.4f}")
        assert errors[0] <= errors[1], name


@pytest.mark.parametrize("kind", DTYPES)
def test_report(run, kind):
    """Guards against a report that leaves layers out or does not say what was done."""
    _, output, report = run(kind)
    assert json.loads((output / "quantization_report.json").read_text()) == json.loads(
        json.dumps(report.as_json())
    )
    ours = Checkpoint(output)
    assert [layer.name for layer in report.layers] == list(ours.layers())
    for layer in report.layers:
        assert 0 < layer.error < (0.1 if kind == "W8A8S" else 0.03)
        assert layer.low < 0 < layer.high
        if kind == "W8A8S":
            assert 0 < layer.outliers <= 0.01
