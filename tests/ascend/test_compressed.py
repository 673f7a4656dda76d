# SPDX-License-Identifier: Apache-2.0
"""W8A8SC on an emulated Atlas 310P, whose compressor and decoder are stand-ins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from npu_emulator.compressed_weights import write_program
from npu_emulator.settings import CHIPS, current_chip
from tests.checkpoints import COMPRESSED_SHAPE
from tests.end_to_end.cases import CASES
from tests.engines import ask, engine, network_call, tokens
from tests.quant.compressing import compress
from vllm_glm41v_npu.quant.w8a8sc.container import BLOCK_K, BLOCK_N, INDEX_BYTES

pytestmark = [
    pytest.mark.ascend,
    pytest.mark.skipif(current_chip() is not CHIPS["310P"], reason="only Atlas 310P reads W8A8SC"),
]

NAMES = ("text", "three-pictures", "long-with-pictures")
SHARDED = {"load_format": "sharded_state"}


@pytest.fixture(scope="module")
def sparse(quantized: Callable[..., Path]) -> Path:
    return quantized("W8A8S", COMPRESSED_SHAPE.name)


@pytest.fixture(scope="module")
def shards(sparse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one rank, by the stand-in."""
    return make_shards(sparse, tmp_path_factory.mktemp("shards"), 1)


def make_shards(sparse: Path, folder: Path, tp_size: int) -> Path:
    program = str(write_program(folder / "compress_excutor"))
    out = folder / "shards"
    command = ["--tp", str(tp_size), "--codec", "cann", "--cann-compressor", program]
    compress(sparse, out, *command)
    return out


def answers(checkpoint: Path, **options: Any) -> list[list[int]]:
    with engine(checkpoint, **options) as llm:
        return [tokens(output) for output in ask(llm, [CASES[name] for name in NAMES])]


def test_one_rank_equals_its_source(sparse: Path, shards: Path) -> None:
    """Guards the whole way, and steps of more tokens than the operator takes at once."""
    expected = answers(sparse)
    assert len({tuple(answer) for answer in expected}) == len(NAMES)
    with engine(shards, **SHARDED) as llm:
        sizes = network_call(llm, compressed_sizes)
        found = [tokens(output) for output in ask(llm, [CASES[name] for name in NAMES])]
    assert found == expected
    report = json.loads((shards / "compression_report.json").read_text())
    for layer in report["layers"]:
        n, k, kept, stored = sizes.pop(layer["name"])
        blocks = -(-k // BLOCK_K) * -(-n // BLOCK_N)
        assert kept == layer["compressed"] - INDEX_BYTES * blocks - 5 * 8
        assert stored == kept < 0.8 * n * k  # what is in memory, with nothing behind it
    assert not sizes


def compressed_sizes(network: Any) -> dict[str, tuple[int, int, int, int]]:
    """Outputs, inputs, values and bytes in memory of each compressed weight."""
    found = {}
    for name, layer in network.named_modules():
        if hasattr(layer, "info"):
            _, _, k, n, _ = layer.info.tolist()
            stored = layer.weight.untyped_storage().nbytes()
            found[name] = n, k, layer.weight.numel(), stored
    return found


@pytest.mark.ranks
def test_two_ranks_equal_their_source(sparse: Path, tmp_path: Path) -> None:
    """Guards the split of weights, scales and biases, in graphs."""
    split = {"enforce_eager": False, "tensor_parallel_size": 2}
    expected = answers(sparse, **split)
    assert answers(make_shards(sparse, tmp_path, 2), **split, **SHARDED) == expected


def test_shards_of_the_open_codec_are_refused(sparse: Path, tmp_path: Path) -> None:
    """Guards against a stream that the chip would decode to nonsense."""
    compress(sparse, tmp_path / "shards")
    with pytest.raises(ValueError, match="codec portable-1, and Atlas 310P decodes cann alone"):
        answers(tmp_path / "shards", **SHARDED)


def test_shards_without_a_record_are_refused(shards: Path, tmp_path: Path) -> None:
    """Guards against rotary rows in the checkpoint's order, as the in-tree class saves them."""
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    path = folder / "quant_model_description.json"
    description = json.loads(path.read_text())
    del description["glm41v"]
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match="no record of how they were made"):
        answers(folder, **SHARDED)


def test_another_number_of_ranks_is_refused(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with pytest.raises(ValueError, match="for 1 tensor-parallel ranks, and 2 were asked for"):
        answers(shards, tensor_parallel_size=2, **SHARDED)


def test_sizes_that_the_operator_does_not_take_are_refused(emulated: None) -> None:
    """Guards the chip against a layer that its document rules out, before anything is served."""
    from vllm_glm41v_npu.ascend.compressed import CompressedScheme
    from vllm_glm41v_npu.quant.w8a8sc.shards import ShardError

    CompressedScheme().get_weight(320, 128, torch.float16)
    for inputs, outputs in [(256, 128), (320, 64), (350, 128), (320, 150)]:
        with pytest.raises(ShardError, match=f"{inputs} inputs and {outputs} outputs.*more than"):
            CompressedScheme().get_weight(inputs, outputs, torch.float16)
