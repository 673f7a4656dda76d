# SPDX-License-Identifier: Apache-2.0
"""Compressed shards in the engine: what they give, and what is refused when it starts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm import EngineArgs
from vllm.plugins import load_general_plugins

from tests.end_to_end.test_float16 import saturates
from tests.engines import engine, tokens
from tests.quant.cases import OPTIONS, check_logits, generate
from tests.quant.compressing import DESCRIPTION, compress, damage, edit
from tests.quant.reference import Checkpoint
from tests.quant.test_cann import stand_in
from tests.quant.test_sharding import FIXTURE, WEIGHTS
from vllm_glm41v_npu.quant.w8a8sc.record import RECORD

SHARDED: dict[str, Any] = OPTIONS | {"load_format": "sharded_state"}
FIRST = "model-rank-0-part-0.safetensors"


def shards_of(source: Path, out: Path, *options: str | Path) -> Path:
    compress(source, out, *options)
    return out


def unusual(folder: Path) -> Path:
    """The fixture with biases of its norms, and with norms that float16's stream cannot hold."""
    shutil.copytree(FIXTURE, folder)
    tensors = load_file(folder / WEIGHTS)
    generator = torch.Generator().manual_seed(5)
    for name, tensor in tensors.items():
        if name.endswith("layernorm.bias"):
            tensors[name] = 0.2 * torch.randn(tensor.shape, generator=generator)
        if name.endswith("post_mlp_layernorm.weight"):
            tensors[name] = tensor * 4000
    save_file(tensors, folder / WEIGHTS)
    return folder


def run(folder: Path, **options: Any) -> tuple[list[Any], set[bool]]:
    """Tokens and all log-probabilities of two answers, and whether the decoder saturates."""
    with engine(folder, **options) as llm:
        answers = [output.outputs[0] for output in generate(llm)]
        return [(answer.token_ids, answer.logprobs) for answer in answers], saturates(llm)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_shards_give_what_their_source_gives(tmp_path: Path, dtype: str) -> None:
    """Guards every parameter: not a bit of any log-probability differs.

    In float16, norms have biases, which shards name and vLLM's loader only fills; and the decoder
    saturates, which is found out when the weights are there.
    """
    source = FIXTURE if dtype == "float32" else unusual(tmp_path / "source")
    shards = shards_of(source, tmp_path / "shards")
    found = run(shards, **SHARDED | {"dtype": dtype})
    assert found == run(source, **OPTIONS | {"dtype": dtype})
    assert found[1] == {dtype == "float16"}


@pytest.mark.ranks
def test_two_ranks_give_what_one_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards which rank gets which shard, and a bias that both would add."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    with engine(FIXTURE, **OPTIONS) as llm:
        expected = [tokens(output) for output in generate(llm)]
    shards = shards_of(FIXTURE, tmp_path / "shards", "--tp", "2")
    with engine(shards, tensor_parallel_size=2, **SHARDED) as llm:
        outputs = generate(llm)
    assert [tokens(output) for output in outputs] == expected
    check_logits(outputs, Checkpoint(FIXTURE), ranks=2)


def truncate(folder: Path) -> None:
    os.truncate(folder / FIRST, (folder / FIRST).stat().st_size - 100)


def widen(folder: Path) -> None:
    edit(
        folder / "config.json", lambda config: config["text_config"].update(intermediate_size=1024)
    )


def forget_checksums(folder: Path) -> None:
    own = json.dumps({"rank": 0, "tensor_parallel_size": 1, "checksums": {}})
    save_file(load_file(folder / FIRST), folder / FIRST, metadata={RECORD: own})


Damage = Callable[[Path], object]
REFUSED: dict[str, tuple[Damage, dict[str, Any], str]] = {
    "truncated file": (truncate, {}, f"{FIRST} cannot be read .* Copy it again"),
    "flipped bit": (lambda folder: damage(folder / FIRST), {}, "qkv_proj is damaged"),
    "no record": (
        lambda folder: edit(folder / DESCRIPTION, lambda value: value.pop(RECORD)),
        {},
        "no record of how they were made",
    ),
    "no description": (
        lambda folder: (folder / DESCRIPTION).unlink(),
        {"quantization": "ascend"},
        f"needs {DESCRIPTION}",
    ),
    "other layers": (widen, {}, r"gate_up_proj has shape \[1024, 256\].* \[2048, 256\] by config"),
    "no checksums": (forget_checksums, {}, "qkv_proj the type W8A8SC, and no file of the shards"),
    "two ranks": (
        lambda folder: None,
        {"tensor_parallel_size": 2},
        "are for 1 tensor-parallel ranks, and 2 were asked for",
    ),
    "two stages": (lambda folder: None, {"pipeline_parallel_size": 2}, "2 pipeline stages"),
    "bfloat16": (lambda folder: None, {"dtype": "bfloat16"}, "made for float16.*--dtype float32"),
    "as a checkpoint": (
        lambda folder: None,
        {"load_format": "auto"},
        "only in shards for each tensor-parallel rank .--load-format sharded_state",
    ),
}


BEFORE_LOADING = ("no record", "no description", "two ranks", "two stages", "bfloat16")
"""Cases that vLLM's settings are refused for; the others show when the weights are read."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards for one rank."""
    return shards_of(FIXTURE, tmp_path_factory.mktemp("whole") / "shards")


def check_settings(folder: Path, **options: Any) -> None:
    """What an engine does before it starts a process or reads a weight."""
    load_general_plugins()
    EngineArgs(str(folder), **SHARDED | options).create_engine_config()


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_wrong_is_refused(whole: Path, tmp_path: Path, case: str) -> None:
    """Guards against answers from damaged or mistaken weights: the engine does not start."""
    spoil, options, says = REFUSED[case]
    folder = tmp_path / "shards"
    shutil.copytree(whole, folder)
    spoil(folder)
    with pytest.raises(ValueError, match=says):
        if case in BEFORE_LOADING:
            check_settings(folder, **options)
        else:
            with engine(folder, **SHARDED | options):
                pass


def test_shards_for_two_ranks_are_refused_by_one(tmp_path: Path) -> None:
    """Guards against half of a network, which vLLM's loader would take with a warning."""
    shards = shards_of(FIXTURE, tmp_path / "shards", "--tp", "2")
    says = "are for 2 tensor-parallel ranks, and 1 were.*Start with --tensor-parallel-size 2"
    with pytest.raises(ValueError, match=says):
        check_settings(shards)


def test_shards_of_cann_are_refused(tmp_path: Path) -> None:
    """Guards against a chip's stream on a CPU."""
    options = "--codec", "cann", "--cann-compressor", stand_in(tmp_path)
    shards = shards_of(FIXTURE, tmp_path / "shards", *options)
    with pytest.raises(ValueError, match="codec cann, and CPU decodes"):
        check_settings(shards)
