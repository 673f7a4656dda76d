# SPDX-License-Identifier: Apache-2.0
"""`glm41v compress`: what it writes, what it refuses, and that it writes all or nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.quant.cases import write_mindie
from tests.quant.compressing import DESCRIPTION, RUNNER, compress, everything, refused
from tests.quant.test_sharding import FIXTURE, WEIGHTS, shards
from vllm_glm41v_npu.cli import app
from vllm_glm41v_npu.quant.w8a8sc import compressor
from vllm_glm41v_npu.quant.w8a8sc.record import RECORD
from vllm_glm41v_npu.quant.w8a8sc.shards import ShardWriter, check_shards
from vllm_glm41v_npu.quant.w8a8sc.sources import TYPE_MAP

QUANTIZED = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """What vllm-ascend saves after loading W8A8S on two ranks: every norm with a zero bias."""
    folder = tmp_path / "saved"
    shutil.copytree(FIXTURE, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    types = {"model_quant_type": "W8A8S", "version": "1.0.0"}
    for rank, tensors in shards(FIXTURE, 2).items():
        for name, tensor in list(tensors.items()):
            if "norm" in name and name.endswith(".weight"):
                tensors.setdefault(name.replace(".weight", ".bias"), torch.zeros_like(tensor))
            types[name] = "W8A8S" if tensor.dtype == torch.int8 else "FLOAT"
        whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        save_file(whole, folder / f"model-rank-{rank}-part-0.safetensors")
    (folder / TYPE_MAP).write_text(json.dumps(types))
    return folder


def test_shards_are_what_sharded_state_loads(made: tuple[Path, int]) -> None:
    """Guards names, dtypes and sizes in the files, which vLLM's loader takes as they are."""
    folder, tp_size = made
    for rank in range(tp_size):
        tensors = everything(folder, rank)
        for index in range(2):
            for layer in QUANTIZED:
                name = f"language_model.model.layers.{index}.{layer}"
                k, n = tensors[f"{name}.info"].tolist()[2:4]
                assert tensors[f"{name}.weight"].dim() == 1
                assert tensors[f"{name}.weight"].numel() <= k * n
                blocks = -(-k // 256) * -(-n // 128)
                assert tensors[f"{name}.index"].shape == (8 * blocks,)
                assert tensors[f"{name}.deq_scale"].dtype == torch.int64
                assert tensors[f"{name}.quant_bias"].dtype == torch.int32
                assert tensors[f"{name}.input_offset"].dtype == torch.int8
                rows = n if "deq_scale" in name else tensors[f"{name}.deq_scale"].numel()
                assert rows == n
        assert not any("norm" in name and "post_proj" not in name for name in biases(tensors))


def test_the_form_for_mindie_is_compressed_alike(tmp_path: Path) -> None:
    """Guards the other form of W8A8S, whose description may not lie beside that of the shards."""
    mindie = write_mindie(FIXTURE, tmp_path / "mindie")
    plain, other = tmp_path / "plain-shards", tmp_path / "mindie-shards"
    compress(FIXTURE, plain)
    compress(mindie, other)
    assert {path.name for path in plain.iterdir()} == {path.name for path in other.iterdir()}
    assert everything(plain, 0).keys() == everything(other, 0).keys()
    assert json.loads((plain / DESCRIPTION).read_text()) == json.loads(
        (other / DESCRIPTION).read_text()
    )


def biases(tensors: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in tensors if name.endswith(".bias")]


def test_the_description_is_what_vllm_ascend_reads(made: tuple[Path, int]) -> None:
    """Guards the type of each layer, under the checkpoint's names, and what is recorded."""
    folder, tp_size = made
    before = json.loads((FIXTURE / DESCRIPTION).read_text())
    after = json.loads((folder / DESCRIPTION).read_text())
    record = after.pop(RECORD)
    assert record["w8a8sc_codec"] == "portable-1"
    assert record["tensor_parallel_size"] == tp_size
    assert record["layout"]["rope_rows"] == "half"
    assert after.pop("model_quant_type") == "W8A8SC"
    assert after.pop("version") == "1.0.0"
    for name, kind in after.items():
        sparse = before[name] == "W8A8S" and name.endswith(".weight")
        assert kind == ("W8A8SC" if sparse else before[name])
    gone = before.keys() - after.keys() - {"model_quant_type", "version"}
    assert all("norm" in name and name.endswith(".bias") for name in gone)
    # With such a name vllm-ascend would give every RMSNorm a bias, which the shards lack.
    assert not any("norm.bias" in name for name in after)


def test_what_else_a_checkpoint_holds_is_copied(made: tuple[Path, int]) -> None:
    """Guards config and tokenizer, without which nothing is served."""
    names = {path.name for path in FIXTURE.iterdir()} - {WEIGHTS}
    found = {path.name for path in made[0].iterdir() if path.suffix != ".safetensors"}
    assert found == names | {compressor.REPORT}


def test_the_report_adds_up(made: tuple[Path, int]) -> None:
    """Guards the ratio that is announced, against the files, and its distance to the entropy."""
    folder, tp_size = made
    report = json.loads((folder / compressor.REPORT).read_text())
    parts = [
        (tensor.nbytes, name)
        for rank in range(tp_size)
        for name, tensor in everything(folder, rank).items()
    ]
    ours = tuple(f"{layer}.{part}" for layer in QUANTIZED for part in ("weight", "index", "info"))
    text = "language_model.model.layers."
    size = sum(n for n, name in parts if name.startswith(text) and name.endswith(ours))
    assert report["bytes"]["compressed"] == size
    assert report["bytes"]["all_tensors"] == sum(nbytes for nbytes, _ in parts)
    assert report["bytes"]["original"] == 2 * 256 * (512 + 256 + 1024)
    assert report["entropy_ratio"] < report["ratio"] < 1.05 * report["entropy_ratio"]
    assert len(report["layers"]) == 6 * tp_size


def test_saved_shards_give_the_same(saved: Path, tmp_path: Path) -> None:
    """Guards vllm-ascend's own flow: load W8A8S, save each rank, compress what was saved."""
    compress(saved, tmp_path / "from-saved", "--tp", "2")
    compress(FIXTURE, tmp_path / "from-checkpoint", "--tp", "2")
    for rank in (0, 1):
        ours, theirs = (
            everything(tmp_path / name, rank) for name in ("from-saved", "from-checkpoint")
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    texts = [
        (tmp_path / f"from-{name}" / DESCRIPTION).read_text() for name in ("saved", "checkpoint")
    ]
    assert texts[0] == texts[1]
    assert not (tmp_path / "from-saved" / TYPE_MAP).exists()


def test_saved_shards_that_do_not_fit_are_refused(saved: Path, tmp_path: Path) -> None:
    """Guards against half a network, and against vLLM's own class with other rotary rows."""
    out = tmp_path / "out"
    assert "shards of the ranks 0, 1; for --tp 1" in refused(saved, out)
    first = saved / "model-rank-0-part-0.safetensors"
    tensors = load_file(first)
    del tensors["visual.patch_embed.motion.weight"]
    save_file(tensors, first)
    assert "this network did not save it" in refused(saved, out, "--tp", "2")
    (saved / TYPE_MAP).unlink()
    assert f"no {TYPE_MAP}" in refused(saved, out, "--tp", "2")
    (saved / DESCRIPTION).unlink()
    assert f"holds no {DESCRIPTION}" in refused(saved, out, "--tp", "2")
    assert not out.exists()


def test_an_output_is_not_overwritten_unasked(copied: tuple[Path, int], tmp_path: Path) -> None:
    """Guards somebody's folder; shards that are to be replaced are replaced as a whole."""
    out, tp_size = copied
    (out / "left-over").write_text("of the last run")
    assert "exists. Give another folder, or --overwrite" in refused(FIXTURE, out)
    assert (out / "left-over").exists()
    compress(FIXTURE, out, "--overwrite", "--tp", "1")
    assert not (out / "left-over").exists()
    check_shards(out, 1)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_only_shards_are_overwritten(tmp_path: Path) -> None:
    """Guards the source, and a home directory, from a slip of the hand."""
    source = tmp_path / "source"
    shutil.copytree(FIXTURE, source)
    for out in (source, tmp_path):
        assert "is no result of `glm41v compress`" in refused(source, out, "--overwrite")
    (tmp_path / compressor.REPORT).write_text("{}")
    assert "is no result of `glm41v compress`" in refused(source, tmp_path, "--overwrite")
    assert (source / WEIGHTS).exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left")])
def test_an_interrupted_run_leaves_nothing(
    copied: tuple[Path, int], tmp_path: Path, monkeypatch, error
) -> None:
    """Guards against half of the shards under the name of all, and keeps what was there."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(ShardWriter, "close", fail)
    out, tp_size = copied
    for arguments in ([str(out), "--overwrite"], [str(tmp_path / "new")]):
        result = RUNNER.invoke(app, ["compress", str(FIXTURE), *arguments])
        assert result.exit_code != 0
        if isinstance(error, OSError):
            assert "is full, and nothing was kept" in result.stderr.replace("\n", " ")
        assert [path.name for path in tmp_path.iterdir()] == [out.name]
        check_shards(out, tp_size)


def test_what_cannot_be_compressed_is_refused(tmp_path: Path) -> None:
    """Guards other types, damaged sources, and ranks that do not divide, each in a sentence."""
    out = tmp_path / "out"
    assert "describes W8A8; only W8A8S" in refused(FIXTURE.parent / "w8a8_bf16", out)
    assert "is no folder" in refused(tmp_path / "nothing", out)
    assert "3 ranks cannot share" in refused(FIXTURE, out, "--tp", "3")
    missing = tmp_path / "no-such-compressor"
    said = refused(FIXTURE, out, "--codec", "cann", "--cann-compressor", missing)
    assert "is no program that can be run" in said

    cut = tmp_path / "cut"
    shutil.copytree(FIXTURE, cut)
    (cut / WEIGHTS).chmod(0o644)
    os.truncate(cut / WEIGHTS, 1_000_000)
    assert f"{WEIGHTS} is cut short" in refused(cut, out)

    part = tmp_path / "part"
    shutil.copytree(FIXTURE, part)
    tensors = load_file(part / WEIGHTS)
    del tensors["model.language_model.layers.0.self_attn.o_proj.deq_scale"]
    (part / WEIGHTS).unlink()
    save_file(tensors, part / WEIGHTS)
    assert "o_proj.deq_scale" in refused(part, out)
    assert not out.exists()
