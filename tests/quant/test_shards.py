# SPDX-License-Identifier: Apache-2.0
"""Which shards load, what they decode to, and which are refused before anything is served."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.quant.compressing import DESCRIPTION, compress, damage, edit, everything
from tests.quant.test_cann import stand_in
from tests.quant.test_sharding import FIXTURE, shards
from vllm_glm41v_npu.backends import ATLAS_310P, ATLAS_A2, CPU
from vllm_glm41v_npu.quant.w8a8sc.container import PARTS, Compressed, ContainerError
from vllm_glm41v_npu.quant.w8a8sc.portable import decode
from vllm_glm41v_npu.quant.w8a8sc.record import RECORD, ShardError
from vllm_glm41v_npu.quant.w8a8sc.shards import (
    ShardWriter,
    check_shards,
    stored_weights,
    verify_shard,
)


def test_shards_decode_to_what_was_compressed(made: tuple[Path, int]) -> None:
    """Guards that nothing is lost, on any rank, in any tensor."""
    folder, tp_size = made
    for rank, expected in shards(FIXTURE, tp_size).items():
        found = everything(folder, rank)
        for layer, stored in stored_weights(folder, rank).items():
            parts = [found.pop(f"{layer}.{part}") for part in PARTS]
            assert stored.sizes == {p: t.shape for p, t in zip(PARTS, parts, strict=True)}
            found[f"{layer}.weight"] = decode(layer, Compressed(*parts), stored.checksum)
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert tensor.dtype == expected[name].dtype
            assert torch.equal(tensor, expected[name]), name
        verify_shard(folder, rank)


def test_cann_shards_are_recorded_and_for_a_310p_alone(tmp_path: Path) -> None:
    """Guards against a chip's stream being taken for an open one, and the other way round."""
    out = tmp_path / "out"
    compress(FIXTURE, out, "--codec", "cann", "--cann-compressor", stand_in(tmp_path))
    record = check_shards(out, 1)
    assert record.codec == "cann"
    verify_shard(out, 0)
    record.check_backend(ATLAS_310P)
    with pytest.raises(ShardError, match="codec cann, and CPU decodes portable-1.*--codec port"):
        record.check_backend(CPU)
    damage(out / "model-rank-0-part-0.safetensors")
    with pytest.raises(ContainerError, match="qkv_proj is damaged"):
        verify_shard(out, 0)


def test_portable_shards_are_for_a_cpu_alone(made: tuple[Path, int]) -> None:
    """Guards against a stream that the chip would take for its own."""
    record = check_shards(*made)
    record.check_backend(CPU)
    with pytest.raises(ShardError, match="Atlas 310P decodes cann alone.*--codec cann"):
        record.check_backend(ATLAS_310P)
    with pytest.raises(ShardError, match="Atlas A2 does not. Use a float, W8A8"):
        record.check_backend(ATLAS_A2)


def test_a_truncated_shard_is_refused(copied: tuple[Path, int]) -> None:
    """Guards against an interrupted copy."""
    folder, tp_size = copied
    path = folder / "model-rank-0-part-0.safetensors"
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(ShardError, match="model-rank-0-part-0.safetensors cannot be read"):
        check_shards(folder, tp_size)


def test_shards_for_another_number_of_ranks_are_refused(made: tuple[Path, int]) -> None:
    """Guards against vLLM's loader, which copies what fits and serves the rest as it finds it."""
    folder, tp_size = made
    other = 3 - tp_size
    with pytest.raises(ShardError, match=f"for {tp_size} tensor-parallel ranks, and {other} were"):
        check_shards(folder, other)
    if tp_size > 1:
        with pytest.raises(ShardError, match="--mm-encoder-tp-mode weights, and data was"):
            check_shards(folder, tp_size, "data")


def test_shards_without_a_record_are_refused(copied: tuple[Path, int]) -> None:
    """Guards against shards of vllm-ascend's own script, whose layouts nobody knows."""
    folder, tp_size = copied
    edit(folder / DESCRIPTION, lambda value: value.pop(RECORD))
    with pytest.raises(ShardError, match="have no record of how they were made"):
        check_shards(folder, tp_size)
    edit(folder / DESCRIPTION, lambda value: value.update({RECORD: {"w8a8sc_codec": "cann"}}))
    with pytest.raises(ShardError, match="is incomplete"):
        check_shards(folder, tp_size)
    with pytest.raises(ShardError, match="says W8A8S; W8A8SC was expected"):
        check_shards(FIXTURE, tp_size)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"w8a8sc_codec": "portable-2"}, "the codec 'portable-2'"),
        ({"layout": {"rope_rows": "interleaved"}}, "'rope_rows': 'interleaved'"),
    ],
)
def test_shards_of_another_version_are_refused(copied: tuple[Path, int], change, says) -> None:
    """Guards a later change of the format or of a layout against older shards."""
    folder, tp_size = copied
    edit(folder / DESCRIPTION, lambda value: value[RECORD].update(change))
    with pytest.raises(ShardError, match=says):
        check_shards(folder, tp_size)


def test_files_that_do_not_belong_are_refused(copied: tuple[Path, int]) -> None:
    """Guards ranks against being exchanged, and vLLM's wildcard against a file too many."""
    folder, tp_size = copied
    first = folder / "model-rank-0-part-0.safetensors"
    shutil.copy(first, folder / "model-rank-0-part-1.safetensors")
    with pytest.raises(ShardError, match="holds model-rank-0-part-1.safetensors beside"):
        check_shards(folder, tp_size)
    (folder / "model-rank-0-part-1.safetensors").unlink()
    if tp_size > 1:
        shutil.copy(first, folder / "model-rank-1-part-0.safetensors")
        with pytest.raises(ShardError, match="holds rank 0 of 2, not 1 of 2"):
            check_shards(folder, tp_size)
    save_file(load_file(first), first)
    with pytest.raises(ShardError, match="has no record of its rank"):
        check_shards(folder, tp_size)


def test_a_large_shard_is_several_files(tmp_path: Path) -> None:
    """Guards memory at the true size: no more than a part is held, and none is lost."""
    writer = ShardWriter(tmp_path, rank=1, tp_size=2, part_bytes=1000)
    tensors = {f"layer{number}.weight": torch.full((100,), float(number)) for number in range(7)}
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    files = writer.close()
    assert files == tuple(f"model-rank-1-part-{part}.safetensors" for part in range(3))
    found = {name: t for file in files for name, t in load_file(tmp_path / file).items()}
    assert found.keys() == tensors.keys()
    assert writer.nbytes == sum(t.nbytes for t in tensors.values())
    with safe_open(tmp_path / files[2], framework="pt") as file:
        assert json.loads(file.metadata()[RECORD])["rank"] == 1
