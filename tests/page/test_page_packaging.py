# SPDX-License-Identifier: Apache-2.0
"""The environment of the page: its lock beside the others, and beside the extra `page`."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec

from packaging.requirements import Requirement

from tests.test_packaging import pins, unmet


def test_lock_is_what_is_installed_and_complete() -> None:
    """Guards against another version than the lock says, and what --no-deps leaves out."""
    locked = pins("page.lock")
    assert {name: metadata.version(name) for name in locked} == locked
    assert unmet(locked) == set()


def test_versions_of_the_other_locks() -> None:
    """Guards against a page tested beside other versions than a person has with vLLM; but for
    Pillow, of which gradio takes 12 at most."""
    others, page = pins("cpu.lock") | pins("dev.lock"), pins("page.lock")
    assert {name for name in page if page[name] != others.get(name, page[name])} == {"pillow"}


def test_extra() -> None:
    """Guards against bounds of the extra that leave out what is tested."""
    required = [Requirement(text) for text in metadata.requires("vllm-glm41v-npu") or []]
    extra = [r for r in required if r.marker and r.marker.evaluate({"extra": "page"})]
    assert {requirement.name for requirement in extra} == {"gradio", "httpx"}
    for requirement in extra:
        assert requirement.specifier.contains(metadata.version(requirement.name))


def test_the_page_needs_no_engine() -> None:
    """Guards the other tests' meaning: that they run without vLLM and what it brings."""
    assert [name for name in ("torch", "transformers", "vllm") if find_spec(name)] == []
