# SPDX-License-Identifier: Apache-2.0
"""Settings of parallel decoding, turned into vLLM's speculative configuration."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import pytest

from vllm_glm41v_npu.decoding.settings import DecodingError, Kind, speculative_config

MEMORY = "vllm_glm41v_npu.decoding.proposer.MemoryProposer"
FIXED = "vllm_glm41v_npu.decoding.proposer.FixedMemoryProposer"


def test_nothing_is_asked() -> None:
    assert speculative_config(None) is None


@pytest.mark.parametrize(
    ("asked", "method", "model", "tokens"),
    [
        (("ngram",), "ngram", None, 5),
        (("ngram", 7), "ngram", None, 7),
        (("memory",), "custom_class", MEMORY, 15),
        ((Kind.memory, 16, True), "custom_class", MEMORY, 15),
        (("memory", 1, False), "custom_class", FIXED, 1),
    ],
)
def test_kinds(asked: tuple, method: str, model: str | None, tokens: int) -> None:
    """Guards the names that vLLM takes, and Ascend's limit."""
    found = speculative_config(*asked)
    assert found is not None
    assert (found["method"], found.get("model")) == (method, model)
    assert found["num_speculative_tokens"] == tokens
    if model:
        module, name = model.rsplit(".", 1)
        assert callable(getattr(importlib.import_module(module), name).propose)


def test_suffix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the sentence without the package, and the limit with it."""
    monkeypatch.setitem(sys.modules, "arctic_inference", None)
    with pytest.raises(DecodingError, match="pip install arctic-inference==0.1.1"):
        speculative_config("suffix")
    package = ModuleType("arctic_inference")
    package.__spec__ = importlib.machinery.ModuleSpec("arctic_inference", None)
    monkeypatch.setitem(sys.modules, "arctic_inference", package)
    assert speculative_config("suffix") == {"method": "suffix", "num_speculative_tokens": 15}


def test_vllms_own() -> None:
    text = '{"method": "ngram", "num_speculative_tokens": 2}'
    assert speculative_config(None, own=text) == {"method": "ngram", "num_speculative_tokens": 2}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"kind": "lookahead"}, "is 'lookahead'; expected ngram, suffix, memory"),
        ({"kind": "memory", "length": 0}, "length is 0; expected 1 to 16"),
        ({"kind": "ngram", "length": 17}, "length is 17; expected 1 to 16"),
        ({"kind": "ngram", "dynamic": True}, "is of memory, not of ngram"),
        ({"kind": None, "length": 4}, "needs --parallel-decoding ngram|suffix|memory"),
        ({"kind": "memory", "own": "{}"}, "give one of them"),
        ({"kind": None, "own": "ngram"}, "is 'ngram'; expected a JSON object"),
    ],
)
def test_wrong_settings(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(DecodingError) as raised:
        speculative_config(**asked)
    assert message in str(raised.value)
