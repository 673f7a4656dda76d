# SPDX-License-Identifier: Apache-2.0
"""The trie: it counts what was there, forgets what is old, and drafts what comes again."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_glm41v_npu.decoding.trie import CHUNK, DEPTH, Trie

PICTURE = 7
CAPACITY = 2 * CHUNK * DEPTH  # the least

TEXTS = st.lists(st.lists(st.integers(0, PICTURE), max_size=40), min_size=1, max_size=4)
"""Texts of so few different tokens that much is repeated."""

# Compiling takes some seconds, and no later example does it.
PATIENT = settings(deadline=None, max_examples=40)


def ids(text: list[int]) -> np.ndarray:
    return np.array(text, np.int32)


def learnt(texts: list[list[int]], capacity: int = CAPACITY, piece: int | None = None) -> Trie:
    """A trie of these texts, each learnt at once or in pieces."""
    trie = Trie(capacity, [PICTURE])
    for text in texts:
        bounds = [*range(0, len(text), piece or max(len(text), 1)), len(text)]
        for start, stop in pairwise(bounds):
            trie.learn(ids(text[:stop]), stop - start, written=True)
    return trie


def counts(trie: Trie) -> dict[tuple[int, ...], int]:
    """Return how often each run in the trie was counted."""
    runs: dict[int, tuple[int, ...]] = {0: ()}
    found = {}
    for node in range(1, trie.state[0]):
        parent, token, count, _, _ = trie.nodes[node].tolist()
        runs[node] = (*runs[parent], token)
        assert runs[node] not in found
        found[runs[node]] = count
    return found


def check_form(trie: Trie) -> None:
    """Check what is true of every trie, whether it has forgotten nodes or not."""
    used = int(trie.state[0])
    assert used <= len(trie.nodes)
    assert sorted(trie.slots[trie.slots >= 0].tolist()) == list(range(1, used))
    children: dict[int, list[int]] = {}
    for node in range(1, used):
        parent = int(trie.nodes[node, 0])
        assert 0 <= parent < node
        children.setdefault(parent, []).append(node)
    for node in range(used):
        of_node = trie.nodes[children.get(node, []), 2]
        if node:
            assert of_node.sum() <= trie.nodes[node, 2]
        best = int(trie.nodes[node, 3])
        assert best in children.get(node, [-1])
        assert best == -1 or trie.nodes[best, 2] == of_node.max()


@PATIENT
@given(TEXTS)
def test_it_counts_every_run(texts: list[list[int]]) -> None:
    """Guards the counts against a search of the texts; no run has a picture in it."""
    trie = learnt(texts)
    expected: Counter[tuple[int, ...]] = Counter()
    for text in texts:
        for start in range(len(text)):
            for length in range(1, min(DEPTH, len(text) - start) + 1):
                expected[tuple(text[start : start + length])] += 1
    expected = Counter({run: n for run, n in expected.items() if PICTURE not in run})
    assert counts(trie) == expected
    check_form(trie)


@PATIENT
@given(TEXTS, st.integers(1, 9))
def test_pieces_make_the_same_trie(texts: list[list[int]], piece: int) -> None:
    """Guards the context across steps: a text may come token by token or at once."""
    whole, pieces = learnt(texts), learnt(texts, piece=piece)
    assert counts(whole) == counts(pieces)
    assert (whole.outcomes == pieces.outcomes).all()


@PATIENT
@given(TEXTS, st.integers(0, 15), st.sampled_from([0.0, 0.3]))
def test_drafts(texts: list[list[int]], limit: int, least: float) -> None:
    """Guards the limit, that drafts were seen after their context, and that no picture is one."""
    trie, text = learnt(texts), texts[-1]
    drafts = trie.draft(ids(text), limit, least)
    assert len(drafts) <= limit
    assert drafts == learnt(texts).draft(ids(text), limit, least)  # nothing is left to chance
    known = counts(trie)
    for number, token in enumerate(drafts):
        assert token != PICTURE
        before = [*text, *drafts[:number]][-1:]
        assert any(run[-2:] == (*before, token) for run in known)
    assert (trie.draft(ids(text), limit, 0.0))[: len(drafts)] == drafts


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 1000), st.sampled_from([3, 50, 100_000]))
def test_it_forgets_what_is_old(seed: int, vocabulary: int) -> None:
    """Guards the bound of memory, and the form of what is left."""
    random = np.random.default_rng(seed)
    trie = Trie(CAPACITY)
    for _ in range(8):
        text = random.integers(0, vocabulary, 900).astype(np.int32)
        trie.learn(text, 900, written=False)
        check_form(trie)
        # What was learnt last is there.
        assert trie.draft(text[-40:-20], 5, 0.0) == text[-20:-15].tolist() or vocabulary < 100


def test_it_remembers_longer_than_it_forgets() -> None:
    """Guards which half goes: a text that comes again and again stays."""
    random, trie = np.random.default_rng(0), Trie(CAPACITY)
    kept = random.integers(0, 100_000, 60).astype(np.int32)
    for _ in range(20):
        trie.learn(kept, 60, written=False)
        trie.learn(random.integers(0, 100_000, 300).astype(np.int32), 300, written=False)
    assert trie.draft(kept[:10], 15, 0.0) == kept[10:25].tolist()


def test_it_forgets_half() -> None:
    """Guards what was seen before the trie was full: the newer half of it stays."""
    random, trie = np.random.default_rng(0), Trie(CAPACITY)
    texts = [random.integers(0, 100_000, 100).astype(np.int32) for _ in range(11)]
    for text in texts:
        before = int(trie.state[0])
        trie.learn(text, len(text), written=False)
        if int(trie.state[0]) < before:
            break
    kept = [text for text in texts if trie.draft(text[:20], 5, 0.0) == text[20:25].tolist()]
    assert before > CAPACITY // 4 and before // 3 < int(trie.state[0]) < before
    assert len(kept) > 2 and all(text is not texts[0] for text in kept)


def test_the_most_frequent_goes_first_and_then_the_newest() -> None:
    trie = learnt([[1, 2, 3], [1, 2, 3], [1, 2, 4]])
    assert trie.draft(ids([1, 2]), 1, 0.0) == [3]
    trie.learn(ids([1, 2, 4]), 3, written=False)
    assert trie.draft(ids([1, 2]), 1, 0.0) == [4]


def test_it_learns_when_to_stop() -> None:
    """Guards the calibration: repetition is followed far, noise not at all."""
    random, trie = np.random.default_rng(0), Trie()
    circle = np.tile(np.arange(20, dtype=np.int32), 20)
    trie.learn(circle, len(circle), written=True)
    assert trie.draft(circle[:30], 15, 0.5) == [*range(10, 20), *range(5)]
    noise = random.integers(0, 50, 3000).astype(np.int32)
    trie.learn(noise, len(noise), written=True)
    other = random.integers(0, 50, (100, 20)).astype(np.int32)
    assert sum(len(trie.draft(text, 15, 0.3)) for text in other) < 10
    assert all(len(trie.draft(text, 15, 0.0)) == 15 for text in other)


@pytest.mark.parametrize("capacity", [CAPACITY // 2, CAPACITY + 1, 0])
def test_a_wrong_capacity(capacity: int) -> None:
    with pytest.raises(ValueError, match="expected a power of two from 8192 on"):
        Trie(capacity)
