# SPDX-License-Identifier: Apache-2.0
"""The front end's cache: it alone decides what the engine keeps, when a request is handed over."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from cachetools import LRUCache
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.cache import MultiModalCache
from vllm.multimodal.inputs import (
    MultiModalFeatureSpec,
    MultiModalFieldElem,
    MultiModalKwargsItem,
)
from vllm.v1.engine import EngineCoreRequest

from vllm_glm41v_npu.patches.media_cache.orders import FIELD, NOT_KEPT, split_orders, with_orders
from vllm_glm41v_npu.patches.media_cache.promises import Found, PromisingCache, Updates
from vllm_glm41v_npu.patches.media_cache.receiver import MissingMedia

_numbers = itertools.count(NOT_KEPT + 1)
_senders: WeakSet[SenderCache] = WeakSet()


class Medium:
    """Facts about a processed medium that stay here when its tensors are the engine's.

    As long as anything refers to it, the engine keeps what it was sent under `number`. With the
    last reference goes the number: the engine is told with the next medium that is sent.
    """

    def __init__(self, mm_hash: str, size: int, updates: Updates, sender: SenderCache) -> None:
        self.mm_hash, self.size, self.updates, self.sender = mm_hash, size, updates, sender
        self.number = NOT_KEPT

    def recall(self) -> None:
        """Take it back: whether the engine has it or not, it is not relied on any more."""
        if self.number != NOT_KEPT:
            self.sender.dropped.append(self.number)
            self.number = NOT_KEPT

    def __del__(self) -> None:
        self.recall()

    def __deepcopy__(self, memo: dict[int, Any]) -> Medium:
        return self  # a copy would drop the number a second time


class Prepared(MultiModalKwargsItem):
    """A medium in the hands of a request; without tensors if the engine has them."""

    def __init__(self, fields: Mapping[str, MultiModalFieldElem], medium: Medium) -> None:
        super().__init__(fields)
        self.medium = medium


class SenderCache(PromisingCache):
    """Cache of the media that the engine keeps, by their hash, least recently sent dropped first.

    A medium counts as kept only from the moment that a request with it is handed to the engine;
    what was refused before is forgotten with the request. Until then, requests share its tensors.
    """

    def __init__(self, capacity: float) -> None:
        super().__init__()
        self.dropped: deque[int] = deque()
        self._kept: LRUCache[str, Medium] = LRUCache(capacity, lambda medium: medium.size)
        self._in_hand: WeakValueDictionary[str, Prepared] = WeakValueDictionary()
        _senders.add(self)

    def _find(self, mm_hash: str) -> Found | None:
        prepared = self._in_hand.get(mm_hash)
        if prepared is None:
            medium = self._kept.get(mm_hash)
            if medium is None:
                return None
            prepared = self._in_hand[mm_hash] = Prepared({}, medium)
        return prepared, prepared.medium.updates

    def _add(self, mm_hash: str, item: MultiModalKwargsItem, updates: Updates) -> Found:
        medium = Medium(mm_hash, MultiModalCache.get_item_size(item), updates, self)
        prepared = self._in_hand[mm_hash] = Prepared(item, medium)
        return prepared, updates

    def hand_over(self, prepared: Prepared) -> MultiModalKwargsItem:
        """The medium as it goes to the engine, with the tensors only if it does not have them.

        Raises:
            VLLMValidationError: neither here nor in the engine are there any tensors.
        """
        with self._lock:
            mine = prepared.medium
            medium = mine if mine.number != NOT_KEPT else self._kept.get(mine.mm_hash, mine)
            is_kept = medium.number != NOT_KEPT
            if not is_kept and not prepared:
                raise VLLMValidationError("A picture or video is no longer held: send it again.")
            if medium.size <= self._kept.maxsize:
                if not is_kept:
                    medium.number = next(_numbers)
                self._kept[medium.mm_hash] = medium
            tensors = MultiModalKwargsItem() if is_kept else prepared
            return with_orders(tensors, medium.number, self._take_dropped())

    def _take_dropped(self) -> Iterator[int]:
        for _ in range(len(self.dropped)):
            yield self.dropped.popleft()

    def recall(self, medium: Medium) -> None:
        """Forget a medium, so that it is processed and sent again."""
        with self._lock:
            if self._kept.get(medium.mm_hash) is medium:
                del self._kept[medium.mm_hash]
            self._in_hand.pop(medium.mm_hash, None)
            medium.recall()

    def recall_numbers(self, numbers: Iterable[int]) -> None:
        """Forget those media of `numbers` that are here."""
        with self._lock:
            wanted = set(numbers)
            here = [*self._kept.values(), *(item.medium for item in self._in_hand.values())]
            for medium in here:
                if medium.number in wanted:
                    self.recall(medium)

    def clear_cache(self) -> None:
        """Forget all media; what requests hold in their hands stays theirs."""
        with self._lock:
            self._kept.clear()
            self._in_hand.clear()


def recall_everywhere(numbers: Iterable[int]) -> None:
    """Forget the media that an engine says it does not have."""
    numbers = list(numbers)
    for sender in list(_senders):
        sender.recall_numbers(numbers)


@contextmanager
def handing_over(request: EngineCoreRequest) -> Iterator[None]:
    """Give the request's media the form in which they are sent, which has to be done inside.

    Where that fails, those that were sent with it are taken back, and will be sent again.

    Raises:
        VLLMValidationError: a medium has no tensors here or there, or claims to be an order.
    """
    features = request.mm_features
    if not features:
        yield
        return
    sent: list[MultiModalFeatureSpec] = []
    try:
        for feature in features:
            sent.append(_sent(feature))
        request.mm_features = sent
        yield
    except BaseException as error:
        _take_back(features, sent, error)
        raise
    finally:
        request.mm_features = features


def _sent(feature: MultiModalFeatureSpec) -> MultiModalFeatureSpec:
    item = feature.data
    if isinstance(item, Prepared):
        return replace(feature, data=item.medium.sender.hand_over(item))
    if item is None or FIELD in item:
        raise VLLMValidationError(
            "A request names a picture or video by its hash alone. The server answers nobody with "
            "what another request has sent: send the picture or video itself."
        )
    return replace(feature)  # an engine in this process fills in the tensors


def _take_back(
    features: Sequence[MultiModalFeatureSpec],
    sent: Sequence[MultiModalFeatureSpec],
    error: BaseException,
) -> None:
    """Undo what `hand_over` did: nobody knows what of it has arrived."""
    lost = list(error.numbers) if isinstance(error, MissingMedia) else []
    for feature, as_sent in zip(features, sent, strict=False):
        if isinstance(feature.data, Prepared) and as_sent.data is not None:
            fields, orders = split_orders(as_sent.data)
            feature.data.medium.sender.dropped.extend(orders.dropped)
            lost += [orders.number] if fields else []
    recall_everywhere(lost)
