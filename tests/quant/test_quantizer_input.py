# SPDX-License-Identifier: Apache-2.0
"""`glm41v quantize`: what it reads, what it refuses, and that nothing half-written is left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from tests.checkpoints import TINY
from vllm_glm41v_npu.checkpoint.names import disk_name, network_name
from vllm_glm41v_npu.cli import app
from vllm_glm41v_npu.quant.quantizer import writer
from vllm_glm41v_npu.quant.quantizer.network import Network

FEW = ("--samples", "2")


def run(source: Path, output: Path, *options: str | Path, type: str = "W8A8_DYNAMIC") -> Result:
    arguments = [source, output, "--type", type, *options]
    return CliRunner().invoke(app, ["quantize", *map(str, arguments)])


def refusal(result: Result, *parts: str) -> None:
    """One sentence with all of `parts` in it, and nothing written."""
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert all(part in line for part in parts), line


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    """Where to write; at the end it holds a whole checkpoint or does not exist."""
    folder = tmp_path / "made" / "output"
    yield folder
    left = list(folder.parent.iterdir()) if folder.parent.exists() else []
    assert left in ([], [folder])
    assert not left or (folder / "quant_model_description.json").exists()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(TINY, tmp_path / "tiny"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("quant_model_weight*.safetensors")
    return load_file(path)


def test_shards_and_older_names_give_the_same(tiny, output, tmp_path):
    """Guards against a source whose files or names are read differently."""
    tensors = load_file(tiny / "model.safetensors")
    (tiny / "model.safetensors").unlink()
    older = {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): value
        for name, value in tensors.items()
    }
    assert {disk_name(network_name(name)) for name in older} == tensors.keys() != older.keys()
    weight_map = {}
    for index, name in enumerate(sorted(older)):
        weight_map[name] = f"model-{index % 3}.safetensors"
    for file in set(weight_map.values()):
        save_file({n: t for n, t in older.items() if weight_map[n] == file}, tiny / file)
    (tiny / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert run(tiny, output, *FEW).exit_code == 0
    plain = tmp_path / "plain"
    assert run(TINY, plain, *FEW).exit_code == 0
    one, other = weights(output), weights(plain)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not (output / "model.safetensors.index.json").exists()


def test_large_output_is_sharded_with_an_index(output, monkeypatch):
    """Guards against one file of many gigabytes, or an index that misses a tensor."""
    monkeypatch.setattr(writer, "SHARD_BYTES", 500_000)
    assert run(TINY, output, *FEW).exit_code == 0
    index = json.loads(
        (output / "quant_model_weight_w8a8_dynamic.safetensors.index.json").read_text()
    )
    files = sorted(path.name for path in output.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"quant_model_weight_w8a8_dynamic-00001-of-{len(files):05d}.safetensors"
    found = {name: file for file in files for name in load_file(output / file)}
    assert index["weight_map"] == found
    described = json.loads((output / "quant_model_description.json").read_text())
    assert {name for name in described if "." in name} == found.keys()


def test_one_block_at_a_time(output, monkeypatch):
    """Guards against a network whose blocks all have their weights at once."""
    most = 0
    original = Network._blocks

    def counted(self, blocks, modules, states, observe):
        nonlocal most
        for block, module in original(self, blocks, modules, states, observe):
            filled = [m for m in (*self.layers, *self.vision_blocks) if not is_meta(m)]
            assert filled == [module]
            most += 1
            yield block, module

    def is_meta(module):
        return next(module.parameters()).is_meta

    monkeypatch.setattr(Network, "_blocks", counted)
    assert run(TINY, output, *FEW).exit_code == 0
    assert most == 3 + 4


def test_layers_are_chosen_by_pattern(output):
    """Guards against an option that has no effect, in the decoder or in the vision tower."""
    options = (
        "--quantize",
        "*.blocks.1.*",
        "--quantize",
        "*.down_proj",
        "--keep-float",
        "*.layers.0.*",
    )
    result = run(TINY, output, *FEW, *options, type="W8A8")
    assert result.exit_code == 0, result.output
    described = json.loads((output / "quant_model_description.json").read_text())
    kinds = {name.removesuffix(".weight"): kind for name, kind in described.items()}
    for layer in ("self_attn.q_proj", "mlp.gate_up_proj", "mlp.down_proj"):
        assert kinds[f"model.language_model.layers.0.{layer}"] == "FLOAT"
        assert kinds[f"model.language_model.layers.2.{layer}"] == "W8A8"
    for layer in ("attn.qkv", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        assert kinds[f"model.visual.blocks.1.{layer}"] == "W8A8"
    assert kinds["model.visual.blocks.0.attn.qkv"] == "FLOAT"
    assert kinds["model.visual.merger.down_proj"] == "W8A8"


def test_pictures_that_cannot_be_read_are_counted(output, tmp_path):
    """Guards against a calibration that fails, or is silent, because of one bad file."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.effect_noise((150, 130), 50).save(folder / "a.png")
    (folder / "b.jpg").write_text("no picture")
    (folder / "notes.txt").write_text("not asked for")
    result = run(TINY, output, "--calibration", folder)
    assert result.exit_code == 0, result.output
    assert "calibrated on 1 conversations" in result.stdout
    assert "1 files unreadable" in result.stdout
    assert "b.jpg (no picture that Pillow can read)" in result.stderr
    assert "notes.txt" not in result.stderr
    assert "b.jpg" in json.loads((output / "quantization_report.json").read_text())["unreadable"][0]


def test_jsonl(output, tmp_path):
    """Guards against conversations of one's own, with answers and without pictures, being lost."""
    Image.effect_noise((150, 130), 50).save(tmp_path / "a.png")
    lines = [
        {"image": "a.png", "text": "What is it?", "answer": "<think>Noise.</think>"},
        {"image": ["a.png", "a.png"], "text": "Compare."},
        {"text": "Hello.\u2028You."},
    ]
    path = tmp_path / "set.jsonl"
    written = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text(written, encoding="utf-8-sig")
    result = run(TINY, output, "--calibration", path)
    assert result.exit_code == 0, result.output
    assert "calibrated on 3 conversations" in result.stdout


def test_video(output, tmp_path):
    """Guards against videos in a calibration directory that are not decoded."""
    cv2 = pytest.importorskip("cv2")
    folder = tmp_path / "videos"
    folder.mkdir()
    file = cv2.VideoWriter(str(folder / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 8, (128, 112))
    for shade in range(0, 240, 12):
        file.write(torch.full((112, 128, 3), shade, dtype=torch.uint8).numpy())
    file.release()
    (folder / "b.mp4").write_text("no video")
    result = run(TINY, output, "--calibration", folder)
    assert result.exit_code == 0, result.output
    assert "calibrated on 1 conversations" in result.stdout
    assert "b.mp4" in result.stderr


def test_calibration_without_a_readable_picture(output, tmp_path):
    """Guards against scales made from nothing."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    refusal(run(TINY, output, "--calibration", folder), "has no picture")
    (folder / "b.jpg").write_text("no picture")
    refusal(run(TINY, output, "--calibration", folder), "nothing readable", "b.jpg")
    refusal(run(TINY, output, "--calibration", tmp_path / "none"), "cannot be read")


def test_vision_needs_pictures(output, tmp_path):
    """Guards against vision layers that are quantized without having been seen."""
    path = tmp_path / "set.jsonl"
    path.write_text('{"text": "Hello."}')
    options = ("--calibration", path, "--quantize", "*.blocks.*")
    refusal(run(TINY, output, *options), "neither pictures nor videos")


def test_output_that_exists_is_kept(tmp_path):
    """Guards against a checkpoint that is written over."""
    (tmp_path / "file").write_text("mine")
    refusal(run(TINY, tmp_path), str(tmp_path), "nothing is overwritten")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_space(output, monkeypatch):
    """Guards against an hour's work before the disk is found full."""
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda path: usage)
    refusal(run(TINY, output), "no room", "GB")


def test_disk_that_fills_up_meanwhile(output, monkeypatch):
    """Guards against a half-written output, and against a traceback for a full disk."""

    def full(tensors, path):
        Path(path).write_bytes(b"half")
        raise writer.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(writer, "save_file", full)
    refusal(run(TINY, output, *FEW), "no room")


def test_interrupt_leaves_nothing(output, monkeypatch):
    """Guards against a half-written output that a loader would find."""

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(writer.Writer, "finish", interrupted)
    assert run(TINY, output, *FEW).exit_code != 0
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--dtype", "float32"), ("float32", "float16 or bfloat16")),
        (("--estimator", "guess"), ("guess", "minmax, percentile, mse")),
        (("--alpha", "2"), ("alpha is 2.0",)),
        (("--samples", "0"), ("number of samples is 0",)),
        (("--quantize", "lm_head"), ("lm_head", "model.language_model.layers.*.mlp.down_proj")),
        (("--keep-float", "*.v_proj"), ("q_proj", "run as one layer")),
        (("--keep-float", "*"), ("Every layer is kept float",)),
    ],
)
def test_wrong_options_are_named(output, options, parts):
    """Guards against an option that is ignored, or fails in a traceback."""
    refusal(run(TINY, output, *options), *parts)


def test_wrong_types_are_named(output):
    """Guards against a type that no chip can run."""
    refusal(run(TINY, output, type="W4A4"), "W4A4", "W8A8, W8A8_DYNAMIC, W8A8S")
    refusal(run(TINY, output, "--dtype", "bfloat16", type="W8A8S"), "float16")


def test_bad_sources_are_named(tiny, output, tmp_path):
    """Guards against a traceback, or a checkpoint of zeros, from a source that is not whole."""
    refusal(run(tmp_path / "none", output), "config.json")
    tensors = load_file(tiny / "model.safetensors")
    name = "model.language_model.layers.1.mlp.gate_up_proj.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, tiny / "model.safetensors")
    refusal(run(tiny, output), name, "is missing")
    save_file(tensors | {name: tensors[name][:-1]}, tiny / "model.safetensors")
    refusal(run(tiny, output), name, "has shape")
    content = (TINY / "model.safetensors").read_bytes()
    (tiny / "model.safetensors").write_bytes(content[:-100])
    refusal(run(tiny, output), "model.safetensors", "cut short")
    (tiny / "quant_model_description.json").write_text("{}")
    refusal(run(tiny, output), "quantized already")


def test_values_too_large_for_float16_are_named(tiny, output):
    """Guards against infinities in a float16 checkpoint made from a wider one."""
    tensors = load_file(tiny / "model.safetensors")
    tensors["model.visual.downsample.bias"][0] = 1e6
    save_file(tensors, tiny / "model.safetensors")
    refusal(run(tiny, output, *FEW), "model.visual.downsample.bias", "--dtype bfloat16")
