# SPDX-License-Identifier: Apache-2.0
"""The engine's cache of media: it does what the front end orders, and decides nothing."""

from __future__ import annotations

from vllm.multimodal.cache import BaseMultiModalReceiverCache
from vllm.multimodal.inputs import MultiModalFeatureSpec, MultiModalKwargsItem

from vllm_glm41v_npu.patches.media_cache.orders import NOT_KEPT, split_orders


class MissingMedia(LookupError):
    """The engine was told to use media that it does not have.

    numbers: The numbers of the media.
    """

    def __init__(self, numbers: list[int]) -> None:
        super().__init__(
            f"The engine does not have {len(numbers)} of the request's pictures or videos, which "
            "the front end thought it kept. Ask again: they will be sent again."
        )
        self.numbers = numbers


class ReceiverCache(BaseMultiModalReceiverCache):
    """Media by the number that the front end gave them.

    There is no limit of its own: the front end orders the numbers dropped beyond its limit.
    """

    def __init__(self) -> None:
        self._items: dict[int, MultiModalKwargsItem] = {}

    def get_and_update_features(
        self, mm_features: list[MultiModalFeatureSpec]
    ) -> list[MultiModalFeatureSpec]:
        """Fill in the tensors; every order is carried out, also if a medium is missing.

        Raises:
            MissingMedia: the media are not all here.
        """
        missing: list[int] = []
        for feature in mm_features:
            try:
                feature.data = self.get_and_update_item(feature.data, feature.identifier)
            except MissingMedia as error:
                missing += error.numbers
        if missing:
            raise MissingMedia(missing)
        return mm_features

    def get_and_update_item(
        self, mm_item: MultiModalKwargsItem | None, mm_hash: str
    ) -> MultiModalKwargsItem:
        if mm_item is None:
            raise MissingMedia([NOT_KEPT])
        fields, orders = split_orders(mm_item)
        for number in orders.dropped:
            self._items.pop(number, None)
        if not fields:
            if orders.number not in self._items:
                raise MissingMedia([orders.number])
            return self._items[orders.number]
        if orders.number != NOT_KEPT:
            self._items[orders.number] = fields
        return fields

    def touch_receiver_cache_item(
        self, mm_hash: str, mm_item: MultiModalKwargsItem | None = None
    ) -> None:
        """Do nothing: the front end keeps the order of eviction."""

    def clear_cache(self) -> None:
        """Do nothing: the front end orders it, number by number, with the next medium it sends.

        vLLM calls this some time after the front end has cleared its own cache, and may have
        received new media in between.
        """
