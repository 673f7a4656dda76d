# SPDX-License-Identifier: Apache-2.0
"""Calls of `glm41v compress`, and what is done to what it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from vllm_glm41v_npu.cli import app

DESCRIPTION = "quant_model_description.json"

RUNNER = CliRunner(env={"VLLM_LOGGING_LEVEL": "ERROR"})
"""The command sets this for its own process; here it is undone after each call."""


def compress(*arguments: str | Path) -> str:
    """What the command says; an AssertionError with all of it where it fails."""
    result = RUNNER.invoke(app, ["compress", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str | Path) -> str:
    """The sentence that the command ends with."""
    result = RUNNER.invoke(app, ["compress", *map(str, arguments)])
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    return result.stderr.rpartition("Error: ")[2].replace("\n", " ")


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Let `change` change the JSON in a file."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def everything(folder: Path, rank: int) -> dict[str, torch.Tensor]:
    """The tensors in the one file of a rank."""
    return load_file(folder / f"model-rank-{rank}-part-0.safetensors")


def damage(path: Path) -> None:
    """Flip a bit in the middle of a compressed weight."""
    name = "language_model.model.layers.0.self_attn.qkv_proj.weight"
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        start, end = json.loads(file.read(length))[name]["data_offsets"]
        place = 8 + length + (start + end) // 2
        file.seek(place)
        value = file.read(1)[0]
        file.seek(place)
        file.write(bytes([value ^ 4]))
