# SPDX-License-Identifier: Apache-2.0
"""Patches of upstream: one file (or folder) each, in one ordered table.

Each file says what is wrong and in which release, the upstream issue if one is known, and what ends
the patch. Its `apply()` may be called again: `wrap` is the one guard. Each owns a test in
tests/patches that fails when upstream no longer needs it. Other models in the same process are
served as vLLM serves them (`family.is_ours`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NamedTuple

from vllm_glm41v_npu.backends import ON_ASCEND, ON_CPU

EVERY_PROCESS, FRONT_END, SERVER = "every process", "front end", "server"
"""The processes that need a patch: all of vLLM's, those that take requests, and servers alone."""


class Patch(NamedTuple):
    """One row.

    name: The module in this package.
    place: The processes that need it.
    stack: The stack that needs it, `Backend.stack`; None for all.
    """

    name: str
    place: str
    stack: str | None = None


PATCHES = (
    Patch("auto_dtype", EVERY_PROCESS),
    Patch("custom_proposer", EVERY_PROCESS, ON_ASCEND),
    Patch("drained_shutdown", EVERY_PROCESS),
    Patch("engine_watch", EVERY_PROCESS),
    Patch("front_end", EVERY_PROCESS),
    Patch("grammar_backends", EVERY_PROCESS),
    Patch("media_cache", EVERY_PROCESS),
    Patch("pinned_memory", EVERY_PROCESS, ON_CPU),
    Patch("sampler_argument", EVERY_PROCESS, ON_CPU),
    Patch("thinking_drafts", EVERY_PROCESS),
    Patch("beam_search", FRONT_END),
    Patch("chat_parts", FRONT_END),
    Patch("closed_thinking", FRONT_END),
    Patch("embedding_files", FRONT_END),
    Patch("empty_media", FRONT_END),
    Patch("long_texts", FRONT_END),
    Patch("media_names", FRONT_END),
    Patch("media_request", FRONT_END),
    Patch("answer_parser", SERVER),
    Patch("anthropic_errors", SERVER),
    Patch("refused_requests", SERVER),
)


def apply_patches(stack: str, place: str = EVERY_PROCESS) -> None:
    """Apply the patches of a place to this process, in order; safe to repeat."""
    for patch in PATCHES:
        if patch.place == place and patch.stack in (None, stack):
            import_module(f"{__name__}.{patch.name}").apply()


def wrap(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace a function of a module or class by what `make` returns for it, once.

    It is replaced also where another plugin has wrapped it before, and not a second time where
    another has wrapped ours.

    Args:
        owner: The module or class that holds the function.
        name: The function's name there.
        make: Takes the function that is there, and returns one `def` around it.
    """
    known = getattr(owner, name)
    ours = make(known)
    if ours.__code__ not in _codes(known):
        setattr(owner, name, functools.wraps(known)(ours))


def _codes(function: Any) -> Iterator[Any]:
    """Yield the code of a function and of each that it wraps."""
    while function is not None:
        yield getattr(function, "__code__", None)
        function = getattr(function, "__wrapped__", None)
