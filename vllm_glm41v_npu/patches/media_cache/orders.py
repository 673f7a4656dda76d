# SPDX-License-Identifier: Apache-2.0
"""Orders of the front end to the engine, which travel with each medium: keep it, use it, drop it.

They are whole numbers in one more field of the medium, because vLLM's encoder carries tensors and
numbers there, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
)

FIELD = "glm41v_npu_orders"
NOT_KEPT = 0
"""The number of a medium that the engine does not keep."""


class Orders(NamedTuple):
    """The orders about one medium, carried out before the model sees it.

    number: under which the medium is kept from now on, or was before if it comes without tensors.
    dropped: the numbers of other media that are no longer needed.
    """

    number: int
    dropped: list[int]


def with_orders(
    fields: Mapping[str, MultiModalFieldElem], number: int, dropped: Iterable[int]
) -> MultiModalKwargsItem:
    """The medium as it is sent; without tensors if `fields` is empty."""
    orders = MultiModalFieldElem([number, *dropped], MultiModalBatchedField())
    return MultiModalKwargsItem({**fields, FIELD: orders})


def split_orders(item: MultiModalKwargsItem) -> tuple[MultiModalKwargsItem, Orders]:
    """The medium's own fields, and the orders; ``NOT_KEPT`` for a medium that came without any."""
    if FIELD not in item:
        return item, Orders(NOT_KEPT, [])
    number, *dropped = item[FIELD].data
    fields = {name: field for name, field in item.items() if name != FIELD}
    return MultiModalKwargsItem(fields), Orders(number, dropped)
