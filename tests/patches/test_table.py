# SPDX-License-Identifier: Apache-2.0
"""The table of patches, their one guard, and the test that each of them owns."""

from __future__ import annotations

import ast
import functools
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_glm41v_npu import patches
from vllm_glm41v_npu.patches import EVERY_PROCESS, PATCHES, Patch, apply_patches, wrap

TESTS = Path(__file__).resolve().parents[1]

REQUESTS, NEEDED = "patches/test_requests.py", "patches/test_still_needed.py"
OWN_TESTS = {
    "answer_parser": (f"{REQUESTS}::test_batches", f"{REQUESTS}::test_batches"),
    "anthropic_errors": (f"{REQUESTS}::test_anthropic_errors",) * 2,
    "auto_dtype": (f"{NEEDED}::test_auto_dtype", "test_dtype.py::test_auto_dtype_is_the_backends"),
    "beam_search": (
        "decoding/test_beam_search.py::test_vllm_knows_one_end",
        "decoding/test_beam_search.py::test_each_end_token_ends",
    ),
    "chat_parts": (f"{REQUESTS}::test_chat_parts",) * 2,
    "closed_thinking": ("serving/test_thinking_switch.py::test_rendered_prompts",) * 2,
    "custom_proposer": (
        "ascend/test_custom_proposer.py::test_vllm_ascend_knows_no_class",
        "ascend/test_custom_proposer.py::test_a_class_is_taken",
    ),
    "drained_shutdown": (
        "serving/test_shutdown.py::test_vllm_stops_its_engine_under_a_request",
        "serving/test_shutdown.py::test_requests_are_answered_first",
    ),
    "embedding_files": (
        f"{REQUESTS}::test_embedding_files",
        "processing/test_embedding_files.py::test_files_that_are_no_tensor",
    ),
    "empty_media": ("processing/test_media_requests.py::test_an_empty_url",) * 2,
    "engine_watch": (
        f"{NEEDED}::test_engine_watch",
        f"{NEEDED}::test_engine_watch_is_in_engines_alone_and_once",
    ),
    "front_end": (f"{NEEDED}::test_front_end", f"{REQUESTS}::test_where_requests_are_taken"),
    "grammar_backends": (
        "patches/test_grammar_backends.py::test_vllm_keeps_the_first_library",
        "patches/test_grammar_backends.py::test_each_request_has_its_library",
    ),
    "long_texts": (
        "patches/test_long_texts.py::test_vllm_still_takes_any_text",
        "patches/test_long_texts.py::test_texts_without_a_limit",
    ),
    "media_cache": (
        f"{NEEDED}::test_media_cache",
        "processing/test_media_cache.py",
    ),
    "media_names": (
        "processing/test_media_names.py::test_vllm_still_takes_a_name_for_the_content",
        "processing/test_media_names.py::test_a_name_changes_nothing",
    ),
    "media_request": (
        "processing/test_media_requests.py::test_vllm_lets_the_others_go_on",
        "processing/test_media_requests.py::test_what_a_chat_loads_is_one_request",
    ),
    "pinned_memory": (f"{NEEDED}::test_pinned_memory",) * 2,
    "refused_requests": (f"{REQUESTS}::test_refused_requests", "serving/test_refused_requests.py"),
    "sampler_argument": (f"{NEEDED}::test_sampler_argument",) * 2,
    "thinking_drafts": (f"{NEEDED}::test_thinking_drafts",) * 2,
}
"""Patch to two tests: one fails when upstream no longer needs it, one shows that it works."""


def test_every_patch_is_in_the_table_and_owns_its_tests() -> None:
    """Guards against a patch that nobody applies, and one that stays when it is not needed."""
    files = {module.name for module in pkgutil.iter_modules(patches.__path__)}
    names = [patch.name for patch in PATCHES]
    assert sorted(names) == sorted(files) == sorted(OWN_TESTS)
    for name, tests in OWN_TESTS.items():
        for test in tests:
            path, _, function = test.partition("::")
            tree = ast.parse((TESTS / path).read_text())
            defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert not function or function in defined, (name, test)


@pytest.mark.parametrize("name", OWN_TESTS)
def test_every_patch_says_when_it_ends(name: str) -> None:
    """Guards against a patch of no release, and one that no release can end."""
    folder = Path(patches.__file__).parent
    path = folder / name / "__init__.py" if (folder / name).is_dir() else folder / f"{name}.py"
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert "0.23.0" in text and "Ends when" in text.replace("\n", " ")


def test_patches_are_applied_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against patches of another stack, or of another kind of process."""
    applied: list[str] = []

    def load(name: str) -> Any:
        return SimpleNamespace(apply=lambda: applied.append(name.rpartition(".")[2]))

    monkeypatch.setattr(patches, "import_module", load)
    rows = (
        Patch("b", EVERY_PROCESS),
        Patch("a", EVERY_PROCESS, "cpu"),
        Patch("c", EVERY_PROCESS, "ascend"),
        Patch("d", patches.SERVER),
    )
    monkeypatch.setattr(patches, "PATCHES", rows)
    apply_patches("cpu")
    apply_patches("ascend", patches.SERVER)
    assert applied == ["b", "a", "d"]


def _adding(known: Callable[[int], int]) -> Callable[[int], int]:
    def added(x: int) -> int:
        return known(x) + 1

    return added


def _doubling(known: Callable[[int], int]) -> Callable[[int], int]:
    @functools.wraps(known)
    def doubled(x: int) -> int:
        return known(x) * 2

    return doubled


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_a_patch_is_applied_once_whoever_else_patches(before: bool, after: bool) -> None:
    """Guards against a patch that is skipped, or doubled, beside another plugin's."""
    owner = SimpleNamespace(number=lambda x: x)
    if before:
        owner.number = _doubling(owner.number)
    wrap(owner, "number", _adding)
    if after:
        owner.number = _doubling(owner.number)
    wrap(owner, "number", _adding)
    wrap(owner, "number", functools.partial(_adding))
    expected = 5 * (1 + before) + 1
    assert owner.number(5) == expected * (1 + after)
