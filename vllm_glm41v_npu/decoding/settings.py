# SPDX-License-Identifier: Apache-2.0
"""Settings of parallel decoding, turned into vLLM's speculative configuration.

Imports neither torch nor vLLM, so that commands print their help and errors without them.
"""

from __future__ import annotations

import json
from enum import Enum
from importlib.util import find_spec
from typing import Any

MOST_TOKENS = 15
"""Draft tokens of a step at most: vllm-ascend's attention takes 16 tokens of a request, and one of
them is sampled."""

LENGTHS = (1, 16)
"""Smallest and largest decoding_length of MindIE."""

PROPOSERS = "vllm_glm41v_npu.decoding.proposer"


class Kind(str, Enum):
    """Source of the draft tokens."""

    ngram = "ngram"
    suffix = "suffix"
    memory = "memory"


DEFAULT_LENGTHS = {Kind.ngram: 5, Kind.suffix: 16, Kind.memory: 16}
"""Decoding length by kind; n-grams cannot tell when to stop, so they draft fewer tokens."""


class DecodingError(ValueError):
    """A setting cannot be used; the message says what was found and what to do."""


def speculative_config(
    kind: str | None,
    length: int | None = None,
    dynamic: bool | None = None,
    own: str | None = None,
) -> dict[str, Any] | None:
    """Return vLLM's speculative configuration, or None where none is asked for.

    Args:
        kind: A value of Kind.
        length: MindIE's decoding_length, as in DEFAULT_LENGTHS if None; 16 means MOST_TOKENS.
        dynamic: MindIE's dynamic_algo, for `memory` only: stop where a draft is likely wrong.
        own: vLLM's own configuration in JSON, in place of all the others.

    Raises:
        DecodingError: A setting is unknown, out of range, given beside one that excludes it, or
            needs a package that is not installed.
    """
    if own is not None:
        if (kind, length, dynamic) != (None, None, None):
            raise DecodingError(
                "--speculative-config is vLLM's own setting, in place of --parallel-decoding and "
                "its options; give one of them."
            )
        return _own(own)
    if kind is None:
        if (length, dynamic) != (None, None):
            raise DecodingError(
                "A decoding length or --dynamic-decoding needs --parallel-decoding "
                f"{'|'.join(Kind)}."
            )
        return None
    if kind not in list(Kind):
        raise DecodingError(f"--parallel-decoding is {kind!r}; expected {', '.join(Kind)}.")
    kind = Kind(kind)
    if dynamic is not None and kind is not Kind.memory:
        raise DecodingError(f"--dynamic-decoding is of memory, not of {kind.value}; leave it out.")
    tokens = _tokens(DEFAULT_LENGTHS[kind] if length is None else length)
    return _kind_config(kind, tokens, dynamic is not False)


def _kind_config(kind: Kind, tokens: int, dynamic: bool) -> dict[str, Any]:
    method: dict[str, Any] = {"method": kind.value}
    if kind is Kind.memory:
        name = "MemoryProposer" if dynamic else "FixedMemoryProposer"
        method = {"method": "custom_class", "model": f"{PROPOSERS}.{name}"}
    elif kind is Kind.suffix:
        if find_spec("arctic_inference") is None:
            raise DecodingError(
                "--parallel-decoding suffix needs the package arctic-inference, which is not "
                "installed: run `pip install arctic-inference==0.1.1`, or use memory."
            )
    else:
        method |= {"prompt_lookup_min": 2, "prompt_lookup_max": 4}
    return method | {"num_speculative_tokens": tokens}


def _tokens(length: int) -> int:
    first, last = LENGTHS
    if not first <= length <= last:
        raise DecodingError(f"The decoding length is {length}; expected {first} to {last}.")
    return min(length, MOST_TOKENS)


def _own(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise DecodingError(
            f"--speculative-config is {text!r}; expected a JSON object of vLLM's, such as "
            '{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4}.'
        )
    return found
