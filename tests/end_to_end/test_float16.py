# SPDX-License-Identifier: Apache-2.0
"""The residual stream in float16, where weights would bring it beyond what float16 holds."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm import LLM, RequestOutput

from tests.end_to_end.cases import CASES
from tests.engines import ask, engine, network_call
from tests.lane import ALL_LANES, ON_CPU

pytestmark = ALL_LANES

ADDING = ("post_self_attn_layernorm.weight", "post_mlp_layernorm.weight")


@pytest.fixture
def loud(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint of six layers that add thousands of times as much to the stream."""
    folder = tmp_path / "loud"
    shutil.copytree(checkpoint("deep-narrow" if ON_CPU else "chip-deep"), folder)
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.endswith(ADDING):
            weights[name] = torch.full_like(weights[name], 10_000)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def saturates(llm: LLM) -> set[bool]:
    def read(network: Any) -> set[bool]:
        return {layer.saturates for layer in network.language_model.model.layers}

    return network_call(llm, read)


def finite(outputs: list[RequestOutput]) -> bool:
    first = [output.outputs[0].logprobs[0] for output in outputs]
    return all(math.isfinite(entry.logprob) for step in first for entry in step.values())


def test_a_stream_that_cannot_overflow_costs_nothing(checkpoint: Callable[[str], Path]) -> None:
    """Guards ordinary weights against needless operators in every layer."""
    with engine(checkpoint("tiny"), dtype="float16") as llm:
        assert saturates(llm) == {False}


def test_a_stream_that_would_overflow_saturates(loud: Path) -> None:
    """Guards the answer against infinities; with the guard taken away they are there."""
    requests = [CASES["text"], CASES["one-picture"]]
    with engine(loud, dtype="float16", enable_prefix_caching=False) as llm:
        assert saturates(llm) == {True}
        assert finite(ask(llm, requests))

        def take_away(network: Any) -> None:
            for layer in network.language_model.model.layers:
                layer.saturates = False

        network_call(llm, take_away)
        assert not finite(ask(llm, requests))
