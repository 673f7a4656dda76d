# SPDX-License-Identifier: Apache-2.0
"""Processor caches that keep their word: what was found for a request stays until it is fetched."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from vllm.multimodal.cache import BaseMultiModalProcessorCache
from vllm.multimodal.inputs import MultiModalKwargsItem
from vllm.multimodal.processing.processor import ResolvedPromptUpdate
from vllm.utils.cache import CacheInfo

Updates = Sequence[ResolvedPromptUpdate]
Found = tuple[MultiModalKwargsItem, Updates]
"""A processed medium, and how it changes the prompt."""

_promised: ContextVar[dict[tuple[int, str], Found] | None] = ContextVar("promised", default=None)


@contextmanager
def promises() -> Iterator[None]:
    """Keep, for the request that is processed inside, all that a cache said it has."""
    before = _promised.set({})
    try:
        yield
    finally:
        _promised.reset(before)


class PromisingCache(BaseMultiModalProcessorCache):
    """A front end's cache; safe to use from several threads.

    A subclass says what it has (`_find`) and takes what is new (`_add`). Only within `promises` is
    anything found, because only there it can be held until the request has fetched it.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._hits = self._total = 0
        self._told = CacheInfo(0, 0)

    @abstractmethod
    def _find(self, mm_hash: str) -> Found | None:
        """The medium of this hash, if it is here."""

    @abstractmethod
    def _add(self, mm_hash: str, item: MultiModalKwargsItem, updates: Updates) -> Found:
        """Take a medium that was processed now."""

    def is_cached_item(self, mm_hash: str) -> bool:
        promised = _promised.get()
        if promised is None:
            return False
        with self._lock:
            found = self._find(mm_hash)
        if found is not None:
            promised[id(self), mm_hash] = found
        return found is not None

    def get_and_update_item(self, mm_item: Any, mm_hash: str) -> Found:
        """The medium; `mm_item` is None, or the medium and its updates, processed now.

        Raises:
            KeyError: None is given and `is_cached_item` found nothing for this request.
        """
        with self._lock:
            self._total += 1
            if mm_item is not None:
                return self._find(mm_hash) or self._add(mm_hash, *mm_item)
            self._hits += 1
            return (_promised.get() or {})[id(self), mm_hash]

    def touch_sender_cache_item(self, mm_hash: str) -> None:
        """Do nothing: promises keep what a request needs, whatever the order of eviction."""

    def make_stats(self, *, delta: bool = False) -> CacheInfo:
        info = CacheInfo(self._hits, self._total)
        if not delta:
            return info
        before, self._told = self._told, info
        return info - before
