# SPDX-License-Identifier: Apache-2.0
"""A request's grammar is compiled by the library that its front end has checked it with."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1 import structured_output
from vllm.v1.structured_output import StructuredOutputManager

from vllm_glm41v_npu.patches import grammar_backends


class _Backend:
    """A library that says its name instead of compiling."""

    name = ""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def compile_grammar(self, kind: str, grammar: str) -> str:
        return f"{self.name}: {grammar}"


class _XGrammar(_Backend):
    name = "xgrammar"


class _Guidance(_Backend):
    name = "guidance"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """What an engine makes of a grammar that was checked with a library."""
    monkeypatch.setattr(structured_output, "XgrammarBackend", _XGrammar)
    monkeypatch.setattr(structured_output, "GuidanceBackend", _Guidance)
    manager: Any = object.__new__(StructuredOutputManager)
    ours = SimpleNamespace(model_type="glm4v")
    model_config = SimpleNamespace(get_vocab_size=lambda: 512, hf_config=ours)
    vars(manager).update(
        backend=None,
        tokenizer=None,
        _use_async_grammar_compilation=False,
        vllm_config=SimpleNamespace(model_config=model_config),
    )

    def compile_with(name: str, grammar: str) -> str:
        wanted = SimpleNamespace(structured_output_key=("grammar", grammar), grammar=None)
        outputs = SimpleNamespace(structured_outputs=SimpleNamespace(_backend=name))
        request = SimpleNamespace(structured_output_request=wanted, sampling_params=outputs)
        manager.grammar_init(request)
        return str(wanted.grammar)

    return compile_with


def _own() -> Any:
    own = StructuredOutputManager.grammar_init
    return getattr(own, "__wrapped__", own)


def test_each_request_has_its_library(
    monkeypatch: pytest.MonkeyPatch, compiled: Callable[[str, str], str]
) -> None:
    """Guards against a grammar for guidance that reaches xgrammar, and ends the engine."""
    monkeypatch.setattr(StructuredOutputManager, "grammar_init", _own())
    grammar_backends.apply()
    names = ["xgrammar", "guidance", "xgrammar", "guidance"]
    assert [compiled(name, "a") for name in names] == [f"{name}: a" for name in names]


def test_vllm_keeps_the_first_library(
    monkeypatch: pytest.MonkeyPatch, compiled: Callable[[str, str], str]
) -> None:
    """Guards the patch: it can go when vLLM keeps a backend for each name."""
    monkeypatch.setattr(StructuredOutputManager, "grammar_init", _own())
    assert [compiled(name, "a") for name in ("xgrammar", "guidance")] == ["xgrammar: a"] * 2
