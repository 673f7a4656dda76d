# SPDX-License-Identifier: Apache-2.0
"""Python objects that stay after requests have ended: exact counts, whatever the allocator does.

The resident memory of a process says little about a leak: allocators keep what was freed, oneDNN
keeps buffers for each shape, and both differ from machine to machine.
"""

from __future__ import annotations

import gc
import logging
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from functools import reduce
from itertools import pairwise
from operator import and_

from vllm import LLM

CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict)
LONG = 20
"""Entries of a container that is looked at by itself: strings and numbers are no objects here."""

SETTLING, ROUNDS = 2, 3
"""Rounds before the first count, in which metrics and kernels come into being; and after it."""


def living(llm: LLM) -> Counter[str]:
    """How many objects of each type there are, and how many entries each long container has.

    The engine must run in this process. Its caches of pictures, of encoder outputs and of prompts
    are emptied first: these have bounds of their own, and would hide what grows without one.
    """
    llm.llm_engine.reset_mm_cache()
    llm.llm_engine.reset_encoder_cache()
    llm.llm_engine.reset_prefix_cache()
    gc.collect()
    found: Counter[str] = Counter()
    for item in gc.get_objects():
        kind = type(item)
        found[f"{kind.__module__}.{kind.__qualname__}"] += 1
        if kind in CONTAINERS and len(item) >= LONG:
            found[f"entries of {kind.__name__} {id(item)}"] = len(item)
    return found


def kept(llm: LLM, ask: Callable[[], int]) -> dict[str, int]:
    """What each of several rounds of requests leaves behind: the least of them, by type.

    A thread that has just made an object is no leak: it does not do so in every round.

    Args:
        ask: Ends some requests, new ones each time, and returns how many.

    Returns:
        Types, and containers, of which at least one object in two requests stays.
    """
    logging.disable()  # pytest keeps all that is logged, for its report
    try:
        for _ in range(SETTLING):
            ask()
        counts = [living(llm)]
        for _ in range(ROUNDS):
            requests = ask()
            counts.append(living(llm))
    finally:
        logging.disable(logging.NOTSET)
    grown = reduce(and_, (after - before for before, after in pairwise(counts)))
    return {kind: more for kind, more in grown.items() if 2 * more >= requests}
