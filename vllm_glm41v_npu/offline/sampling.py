# SPDX-License-Identifier: Apache-2.0
"""Sampling settings that a request may have for itself, checked before the engine sees them.

vLLM checks their ranges and not their types; a value that its engine's process cannot read ends or
hangs that process, and so all other requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class _Range(NamedTuple):
    """The range of a number: from `low` to `high`."""

    type: type
    low: float
    high: float
    words: str

    def check(self, value: Any) -> bool:
        types = (int,) if self.type is int else (int, float)
        right = isinstance(value, types) and not isinstance(value, bool)
        return right and self.low <= value <= self.high


_MOST = 2**31 - 1
_TINY, _HUGE = 2.0**-126, 1e6  # above 0 in float32
_RANGES = {
    "temperature": _Range(float, 0, _HUGE, "a number from 0, which is greedy, to 1e6"),
    "top_p": _Range(float, _TINY, 1, "a number above 0, and 1 at most"),
    "top_k": _Range(int, -1, _MOST, "a whole number from -1 to 2**31 - 1"),
    "repetition_penalty": _Range(float, _TINY, _HUGE, "a number above 0, and 1e6 at most"),
    "seed": _Range(int, -(2**63), 2**63 - 1, "a whole number of 64 bits"),
    "max_tokens": _Range(int, 1, _MOST, "a whole number from 1 to 2**31 - 1"),
}
SETTINGS = (*_RANGES, "stop")
"""Names of vLLM's SamplingParams."""


def check_sampling(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are not None.

    Raises:
        ValueError: One has a wrong type or is out of its range.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    for name, value in given.items():
        if name not in SETTINGS:
            raise ValueError(f"{name} is no setting; expected one of {', '.join(SETTINGS)}.")
        expected = _RANGES[name].words if name in _RANGES else "a text, or a list of texts, not ''"
        if not (_RANGES[name].check(value) if name in _RANGES else _are_texts(value)):
            raise ValueError(f"{name} is {value!r:.60}; expected {expected}.")
    return given


def _are_texts(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return all(isinstance(text, str) and text and is_unicode(text) for text in texts)


def is_unicode(text: str) -> bool:
    """Return True for a text that can be written as UTF-8: it has no lone surrogate."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
