# SPDX-License-Identifier: Apache-2.0
"""The front end's cache where several of them share an engine, or no engine is asked."""

from __future__ import annotations

from cachetools import LRUCache
from vllm.multimodal.cache import MultiModalCache
from vllm.multimodal.inputs import MultiModalKwargsItem

from vllm_glm41v_npu.patches.media_cache.promises import Found, PromisingCache, Updates


class LocalCache(PromisingCache):
    """Cache of processed media with their tensors; drops the least recently used.

    A medium larger than the whole cache is not kept, and not refused.
    """

    def __init__(self, capacity: float) -> None:
        super().__init__()
        self._kept: LRUCache[str, Found] = LRUCache(capacity, _size)

    def _find(self, mm_hash: str) -> Found | None:
        return self._kept.get(mm_hash)

    def _add(self, mm_hash: str, item: MultiModalKwargsItem, updates: Updates) -> Found:
        if _size((item, updates)) <= self._kept.maxsize:
            self._kept[mm_hash] = item, updates
        return item, updates

    def clear_cache(self) -> None:
        with self._lock:
            self._kept.clear()


def _size(found: Found) -> int:
    """Bytes of the tensors."""
    return MultiModalCache.get_item_size(found[0])
