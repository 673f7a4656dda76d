# SPDX-License-Identifier: Apache-2.0
"""A trie of the runs of tokens in all requests, and drafts of the tokens that come next.

A node stands for a run of up to DEPTH tokens and counts how often it was seen. A draft token is the
most frequent token after the longest known end of a text; the next one continues from there, so a
text seen once is followed to its end, however long. The trie learns how far to follow: by the
length of the context and by how certain it was, it counts how often such a draft token was right.

Everything is in arrays of fixed size, and compiled by numba. When they are full, the half of the
nodes that was last seen longest ago is forgotten. Nothing depends on time or chance: equal calls
give equal drafts, in every rank of a tensor-parallel group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import njit

DEPTH = 8
"""Tokens of the longest run; the longest context is one shorter."""

CERTAINTIES = 5
"""Classes of contexts, by how often and how unanimously each was seen; see `_certainty`."""

MEMORY = 64
"""Draft tokens of a class after which the earlier ones count half."""

CHUNK = 512
"""Tokens for which room is made at a time."""

_PARENT, _TOKEN, _COUNT, _BEST, _SEEN, _FIELDS = range(6)
_LEAST = 2 * CHUNK * DEPTH  # nodes
_ROOT, _NONE = 0, -1
_USED, _CLOCK = 0, 1


class Trie:
    """A trie of the runs of tokens that were seen.

    Args:
        capacity: Number of nodes, a power of two; each takes 48 bytes.
        ignored: Tokens that are neither remembered nor drafted; no run goes across one.

    Raises:
        ValueError: The capacity is no power of two, or less than two chunks of tokens need.
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
        self.outcomes = np.zeros((DEPTH, CERTAINTIES, 2))  # right ones, and all

    def learn(self, tokens: np.ndarray, new: int, written: bool) -> None:
        """Count the last tokens of a text; the tokens before them are counted already.

        Args:
            tokens: Integers [length], the text.
            new: Number of last tokens to count.
            written: The network wrote them, so they tell how good drafts would have been.
        """
        for start in range(len(tokens) - new, len(tokens), CHUNK):
            if self.state[_USED] + CHUNK * DEPTH > len(self.nodes):
                self._forget()
            stop = min(start + CHUNK, len(tokens))
            _learn(*self._arrays(), tokens, start, stop, self.ignored, written)

    def draft(self, tokens: np.ndarray, limit: int, least: float) -> list[int]:
        """Return the tokens that are likely to follow a text; none if its end is not known.

        Args:
            tokens: Integers [length], the text.
            limit: Largest number of tokens to return.
            least: Least probability that all of them are right; 0 to follow to the limit.
        """
        out = np.empty(limit, np.int64)
        return out[: _draft(*self._arrays(), tokens, least, out)].tolist()

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.nodes, self.slots, self.state, self.outcomes

    def _forget(self) -> None:
        """Drop the nodes that were last seen longest ago: half of them, or a few more."""
        used = self.state[_USED]
        before = np.partition(self.nodes[:used, _SEEN], used // 2)[used // 2]
        self.slots.fill(_NONE)
        self.state[_USED] = _compact(self.nodes, self.slots, used, before)


def prepare() -> None:
    """Compile, or load the compiled code, so that no request waits for it."""
    trie, token = Trie(_LEAST), np.zeros(1, np.int32)  # the dtype of vLLM's tokens
    trie.learn(token, 1, written=True)
    trie.draft(token, 1, 0.0)
    trie._forget()


def _cached(function: Callable[..., Any]) -> Any:
    """Apply njit, with its code cached on disk if possible: compiling takes some seconds."""
    try:
        return njit(cache=True)(function)
    except RuntimeError as error:  # "cannot cache function ...: no locator available for file ..."
        if "cannot cache" not in str(error):
            raise
        return njit(function)


@njit
def _slot(nodes: Any, slots: Any, parent: int, token: int) -> int:
    """Return the place in `slots` where the child of a node is, or would be."""
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
    """Extend the text whose last nodes are `ends` by `token`.

    `ends` is [DEPTH + 1]: entry n is the node of the last n tokens, _NONE where it is not known.
    """
    for length in range(DEPTH, 0, -1):
        parent = ends[length - 1]
        ends[length] = _NONE if parent == _NONE else slots[_slot(nodes, slots, parent, token)]


@njit
def _ends(nodes: Any, slots: Any, tokens: Any, stop: int) -> Any:
    """Return the nodes at the end of tokens[:stop]; see `_step`."""
    ends = np.full(DEPTH + 1, _NONE)
    ends[0] = _ROOT
    for place in range(max(stop - DEPTH, 0), stop):
        _step(nodes, slots, ends, tokens[place])
    return ends


@njit
def _longest(nodes: Any, ends: Any) -> int:
    """Return the length of the longest context with a known next token, 0 if there is none."""
    for length in range(DEPTH - 1, 0, -1):
        if ends[length] != _NONE and nodes[ends[length], _BEST] != _NONE:
            return length
    return 0


@njit
def _certainty(nodes: Any, context: int) -> int:
    """Return the class of a context, by what came after it.

    0, 1 and 2: always the same token, seen once, two or three times, four times or more. 3: mostly
    the same token. 4: others in more than half of the cases.
    """
    count, seen = nodes[nodes[context, _BEST], _COUNT], nodes[context, _COUNT]
    if count + 1 >= seen:  # after its last occurrence nothing was seen yet
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
            right = nodes[nodes[ends[length], _BEST], _TOKEN] == token
            _judge(outcomes[length, _certainty(nodes, ends[length])], right)
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
def _judge(outcome: Any, right: bool) -> None:
    """Count a draft token, right or wrong, in the outcome of its class."""
    if outcome[1] >= MEMORY:
        outcome[0] /= 2
        outcome[1] /= 2
    outcome[0] += right
    outcome[1] += 1


@njit
def _count(nodes: Any, slots: Any, state: Any, parent: int, token: int) -> int:
    """Count a child and return it; a new one is made first."""
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
    """Keep the most frequent child as the best one; of equals, the one that came last."""
    best = nodes[parent, _BEST]
    if best == _NONE or nodes[child, _COUNT] >= nodes[best, _COUNT]:
        nodes[parent, _BEST] = child


@_cached
def _draft(
    nodes: Any, slots: Any, state: Any, outcomes: Any, tokens: Any, least: float, out: Any
) -> int:
    ends = _ends(nodes, slots, tokens, len(tokens))
    probability = 1.0
    for number in range(len(out)):
        length = _longest(nodes, ends)
        if not length:
            return number
        right, total = outcomes[length, _certainty(nodes, ends[length])]
        probability *= (right + 1) / (total + 2)
        if probability < least:
            return number
        out[number] = nodes[nodes[ends[length], _BEST], _TOKEN]
        _step(nodes, slots, ends, out[number])
    return len(out)


@_cached
def _compact(nodes: Any, slots: Any, used: int, before: int) -> int:
    """Keep the nodes last seen after `before` whose parents are kept; return how many there are.

    `slots` must be empty.
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
