# SPDX-License-Identifier: Apache-2.0
"""A trie of what followed what, over the tokens of all requests, and guesses from it.

A node stands for a run of up to DEPTH tokens and counts how often it was seen. A guess is the most
frequent token after the longest known end of a text, and so on from there: what was seen once is
followed to its end, however long. How far to follow is learnt: by the length of the context that
guessed, and by how unanimous it was, the trie counts how often such a guess came true.

Everything is in two arrays of fixed size, and compiled by numba; where they are full, the half of
the nodes that was not seen for longest is forgotten. Nothing depends on time or chance: equal calls
give equal guesses, in every rank of a tensor-parallel group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import njit

DEPTH = 8
"""Tokens of the longest run; one less is the longest context."""

SURETIES = 5
"""Of guesses, by how often and how unanimously the context was seen, see `_surety`."""

MEMORY = 64
"""Guesses of a surety after which earlier ones count half."""

CHUNK = 512
"""Tokens for which room is made at a time."""

_PARENT, _TOKEN, _COUNT, _BEST, _SEEN, _FIELDS = range(6)
_LEAST = 2 * CHUNK * DEPTH  # nodes
_ROOT, _NONE = 0, -1
_USED, _CLOCK = 0, 1


class Trie:
    """What followed what.

    Args:
        capacity: Nodes, a power of two; each takes 48 bytes.
        ignored: Tokens that are neither remembered nor guessed, and end what came before.

    Raises:
        ValueError: The capacity is no power of two, or less than a chunk of tokens needs twice.
    """

    def __init__(self, capacity: int = 1 << 20, ignored: Sequence[int] = ()) -> None:
        if capacity < _LEAST or capacity & (capacity - 1):
            raise ValueError(
                f"The capacity is {capacity} nodes; expected a power of two from {_LEAST} on."
            )
        self.nodes = np.zeros((capacity, _FIELDS), np.int64)
        self.slots = np.full(2 * capacity, _NONE, np.int32)
        self.state = np.array([1, 0])  # nodes in use, tokens seen
        self.nodes[_ROOT] = (_NONE, _NONE, 0, _NONE, 0)
        self.ignored = np.array(sorted(ignored), np.int64)
        self.outcomes = np.zeros((DEPTH, SURETIES, 2))  # how many came true, how many there were

    def learn(self, tokens: np.ndarray, new: int, written: bool) -> None:
        """Count the last tokens of a text; those before are counted already.

        Args:
            tokens: Integers [length], the text.
            new: How many of them are to be counted.
            written: Whether the network wrote them, which tells how good guesses would have been.
        """
        for start in range(len(tokens) - new, len(tokens), CHUNK):
            if self.state[_USED] + CHUNK * DEPTH > len(self.nodes):
                self._forget()
            stop = min(start + CHUNK, len(tokens))
            _learn(*self._arrays(), tokens, start, stop, self.ignored, written)

    def guess(self, tokens: np.ndarray, limit: int, least: float) -> list[int]:
        """The tokens that are likely to follow a text, none if nothing like its end is known.

        Args:
            tokens: Integers [length], the text.
            limit: How many tokens at most.
            least: How probable it has to be that all of them are right; 0 to follow to the limit.
        """
        out = np.empty(limit, np.int64)
        return out[: _guess(*self._arrays(), tokens, least, out)].tolist()

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.nodes, self.slots, self.state, self.outcomes

    def _forget(self) -> None:
        """Drop the nodes that were not seen for longest: half of them, or a few more."""
        used = self.state[_USED]
        before = np.partition(self.nodes[:used, _SEEN], used // 2)[used // 2]
        self.slots.fill(_NONE)
        self.state[_USED] = _compact(self.nodes, self.slots, used, before)


def prepare() -> None:
    """Compile, or load what was compiled, so that no request waits for it."""
    trie, token = Trie(_LEAST), np.zeros(1, np.int32)  # of the dtype in which vLLM has tokens
    trie.learn(token, 1, written=True)
    trie.guess(token, 1, 0.0)
    trie._forget()


def _cached(function: Callable[..., Any]) -> Any:
    """njit, and its code on disk where a directory for it can be written: it takes some seconds."""
    try:
        return njit(cache=True)(function)
    except RuntimeError as error:  # "cannot cache function ...: no locator available for file ..."
        if "cannot cache" not in str(error):
            raise
        return njit(function)


@njit
def _slot(nodes: Any, slots: Any, parent: int, token: int) -> int:
    """Where in `slots` the child of a node is, or would be."""
    mask = len(slots) - 1
    mixed = (parent * 0x9E3779B1 + token * 0x85EBCA77) & 0x7FFFFFFFFFFFFFFF
    place = (mixed ^ (mixed >> 17)) & mask
    while slots[place] != _NONE:
        node = slots[place]
        if nodes[node, _PARENT] == parent and nodes[node, _TOKEN] == token:
            break
        place = (place + 1) & mask
    return place


@njit
def _step(nodes: Any, slots: Any, ends: Any, token: int) -> None:
    """Let the text that ends in `ends` go on with `token`.

    `ends` is [DEPTH + 1]: at n, the node of the last n tokens, _NONE where it is not known.
    """
    for length in range(DEPTH, 0, -1):
        parent = ends[length - 1]
        ends[length] = _NONE if parent == _NONE else slots[_slot(nodes, slots, parent, token)]


@njit
def _ends(nodes: Any, slots: Any, tokens: Any, stop: int) -> Any:
    """The nodes at the end of tokens[:stop], see `_step`."""
    ends = np.full(DEPTH + 1, _NONE)
    ends[0] = _ROOT
    for place in range(max(stop - DEPTH, 0), stop):
        _step(nodes, slots, ends, tokens[place])
    return ends


@njit
def _longest(nodes: Any, ends: Any) -> int:
    """The length of the longest context that something was seen after, 0 if there is none."""
    for length in range(DEPTH - 1, 0, -1):
        if ends[length] != _NONE and nodes[ends[length], _BEST] != _NONE:
            return length
    return 0


@njit
def _surety(nodes: Any, context: int) -> int:
    """What came after a context: 0 a token once, 1 twice, 2 four times, 3 mostly it, 4 others."""
    count, seen = nodes[nodes[context, _BEST], _COUNT], nodes[context, _COUNT]
    if count + 1 >= seen:  # nothing was seen yet after the last time
        return min(count, 4) // 2
    return 3 if 2 * count >= seen else 4


@_cached
def _learn(
    nodes: Any,
    slots: Any,
    state: Any,
    outcomes: Any,
    tokens: Any,
    start: int,
    stop: int,
    ignored: Any,
    written: bool,
) -> None:
    ends = _ends(nodes, slots, tokens, start)
    for token in tokens[start:stop]:
        if _is_in(ignored, token):
            ends[1:] = _NONE
            continue
        length = _longest(nodes, ends)
        if written and length:
            came_true = nodes[nodes[ends[length], _BEST], _TOKEN] == token
            _judge(outcomes[length, _surety(nodes, ends[length])], came_true)
        state[_CLOCK] += 1
        for length in range(DEPTH, 0, -1):
            parent = ends[length - 1]
            ends[length] = _NONE if parent == _NONE else _count(nodes, slots, state, parent, token)


@njit
def _is_in(values: Any, wanted: int) -> bool:
    for value in values:  # noqa: SIM110  numba compiles no generators
        if value == wanted:
            return True
    return False


@njit
def _judge(outcome: Any, came_true: bool) -> None:
    if outcome[1] >= MEMORY:
        outcome[0] /= 2
        outcome[1] /= 2
    outcome[0] += came_true
    outcome[1] += 1


@njit
def _count(nodes: Any, slots: Any, state: Any, parent: int, token: int) -> int:
    """Count a child, which is made where it is new; returns it."""
    place = _slot(nodes, slots, parent, token)
    child = slots[place]
    if child == _NONE:
        child = state[_USED]
        state[_USED] += 1
        slots[place] = child
        nodes[child, _PARENT], nodes[child, _TOKEN] = parent, token
        nodes[child, _COUNT], nodes[child, _BEST] = 0, _NONE
    nodes[child, _COUNT] += 1
    nodes[child, _SEEN] = state[_CLOCK]
    _prefer(nodes, parent, child)
    return child


@njit
def _prefer(nodes: Any, parent: int, child: int) -> None:
    """The most frequent child is the best one, and of equals the one that came last."""
    best = nodes[parent, _BEST]
    if best == _NONE or nodes[child, _COUNT] >= nodes[best, _COUNT]:
        nodes[parent, _BEST] = child


@_cached
def _guess(
    nodes: Any, slots: Any, state: Any, outcomes: Any, tokens: Any, least: float, out: Any
) -> int:
    ends = _ends(nodes, slots, tokens, len(tokens))
    probability = 1.0
    for number in range(len(out)):
        length = _longest(nodes, ends)
        if not length:
            return number
        true, all_ = outcomes[length, _surety(nodes, ends[length])]
        probability *= (true + 1) / (all_ + 2)
        if probability < least:
            return number
        out[number] = nodes[nodes[ends[length], _BEST], _TOKEN]
        _step(nodes, slots, ends, out[number])
    return len(out)


@_cached
def _compact(nodes: Any, slots: Any, used: int, before: int) -> int:
    """Keep what was seen after `before`, if what it begins with was; returns how many nodes.

    `slots` is empty.
    """
    moved = np.full(used, _NONE)
    moved[_ROOT] = _ROOT
    nodes[_ROOT, _BEST] = _NONE
    kept = 1
    for node in range(1, used):  # a parent comes before its children
        parent = moved[nodes[node, _PARENT]]
        if parent == _NONE or nodes[node, _SEEN] <= before:
            continue
        moved[node] = kept
        nodes[kept] = nodes[node]
        nodes[kept, _PARENT], nodes[kept, _BEST] = parent, _NONE
        slots[_slot(nodes, slots, parent, nodes[kept, _TOKEN])] = kept
        _prefer(nodes, parent, kept)
        kept += 1
    return kept
