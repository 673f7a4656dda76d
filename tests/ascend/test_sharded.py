# SPDX-License-Identifier: Apache-2.0
"""Our shards are what vllm-ascend itself saves and loads on an emulated Atlas 310P."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig
from typer.testing import CliRunner

from npu_emulator.settings import CHIPS, current_chip
from tests.ascend.sharded import save
from tests.checkpoints import COMPRESSED_SHAPE
from tests.quant.test_cann import stand_in
from vllm_glm41v_npu.cli import app
from vllm_glm41v_npu.cli.compress import shard_checkpoint
from vllm_glm41v_npu.processing.hf_config import register_config
from vllm_glm41v_npu.quant.w8a8sc.ranks import rank_bias

pytestmark = [
    pytest.mark.ascend,
    pytest.mark.ranks,
    pytest.mark.skipif(current_chip() is not CHIPS["310P"], reason="only Atlas 310P reads W8A8S"),
]

FIXTURE = Path(__file__).parents[1] / "data" / "msmodelslim" / "w8a8s_fp16"
TP_SIZE = 2


class Made(NamedTuple):
    """Folders: what vllm-ascend saves of W8A8S, our shards of it, and the same of a wider network.

    Of the wider one, vllm-ascend saves our shards: W8A8SC has layers of more than 256 inputs.
    """

    sparse: Path
    shards: Path
    wide: Path
    loaded: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, quantized: Callable[..., Path]) -> Made:
    from vllm.utils.network_utils import get_open_port

    folder = tmp_path_factory.mktemp("sharded")
    made = Made(*(folder / name for name in Made._fields))
    compress(FIXTURE, made.shards)
    compress(quantized("W8A8S", COMPRESSED_SHAPE.name), made.wide)
    save(
        TP_SIZE,
        get_open_port(),
        [(FIXTURE, "auto", made.sparse), (made.wide, "sharded_state", made.loaded)],
    )
    return made


def compress(source: Path, out: Path) -> None:
    """With CANN's codec, as no other loads there, and a program in the place of its own."""
    codec = ["--codec", "cann", "--cann-compressor", str(stand_in(out.parent))]
    arguments = ["compress", str(source), str(out), "--tp", str(TP_SIZE), *codec]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


def shard(folder: Path, rank: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"model-rank-{rank}-part-0.safetensors")


def test_we_split_as_vllm_ascend_does(made: Made) -> None:
    """Guards names, shapes and values of every parameter on every rank, from the network itself.

    A wider float becomes the parameter's dtype in the same way whenever it is loaded.
    """
    register_config()
    ours: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
    config = AutoConfig.from_pretrained(FIXTURE)
    shard_checkpoint(FIXTURE, config, TP_SIZE, lambda rank, name, t: ours[rank].update({name: t}))
    for rank in range(TP_SIZE):
        theirs = shard(made.sparse, rank)
        assert ours[rank].keys() == theirs.keys()
        for name, tensor in theirs.items():
            layer, _, suffix = name.rpartition(".")
            # vllm-ascend keeps this one on all ranks, and leaves it out when computing.
            expected = rank_bias(layer, tensor, rank) if suffix == "quant_bias" else tensor
            assert torch.equal(ours[rank][name].to(tensor.dtype), expected), name


def test_vllm_ascend_loads_our_shards(made: Made) -> None:
    """Guards sharded_state, which fails for a name too many or too few, against the real loader.

    What is saved are the parameters, so a compressed weight is as long as in its file.
    """
    for rank in range(TP_SIZE):
        ours, loaded = shard(made.wide, rank), shard(made.loaded, rank)
        assert ours.keys() == loaded.keys()
        for name, tensor in ours.items():
            found = loaded[name].flatten()
            if tensor.dtype == torch.int64 and name.endswith("deq_scale"):
                found = found.view(torch.int64)
            assert torch.equal(found, tensor.flatten().to(found.dtype)), name


def test_what_vllm_ascend_saved_compresses_to_the_same(made: Made, tmp_path: Path) -> None:
    """Guards vllm-ascend's own flow, in which the chip has loaded the weights before."""
    for path in FIXTURE.iterdir():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, made.sparse / path.name)
    compress(made.sparse, tmp_path / "out")
    for rank in range(TP_SIZE):
        ours, theirs = shard(made.shards, rank), shard(tmp_path / "out", rank)
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.equal(ours[name].to(tensor.dtype), tensor), name
