# SPDX-License-Identifier: Apache-2.0
"""Answers taken apart, at every place where a piece may end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.answers import ANSWERS
from vllm_glm41v_npu.serving.thinking import (
    ANSWER,
    BOX,
    END_ANSWER,
    END_BOX,
    END_THINK,
    THINK,
    ThinkingSplitter,
    split,
)

TAGS = (THINK, END_THINK, ANSWER, END_ANSWER, BOX, END_BOX)


def fed(pieces: Iterable[str], **settings: Any) -> tuple[str, str]:
    splitter = ThinkingSplitter(**settings)
    parts = [splitter.feed(piece) for piece in pieces] + [splitter.end()]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


def test_there_are_twenty() -> None:
    """Guards the number that docs/serving.md states."""
    assert len(ANSWERS) == 20


@pytest.mark.parametrize("name", ANSWERS)
def test_every_split(name: str) -> None:
    """Guards against a tag, or text, lost where one of three pieces ends; and single characters."""
    text, *expected = ANSWERS[name]
    assert split(text) == tuple(expected)
    assert fed(text) == tuple(expected)
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            pieces = text[:first], text[first:second], text[second:]
            assert fed(pieces) == tuple(expected), pieces


def test_markers_of_boxes_are_kept_when_asked() -> None:
    """Guards what grounding reads; the answer tags go all the same."""
    text = ANSWERS["coordinates"].text
    kept = (ANSWERS["coordinates"].thinking, "<|begin_of_box|>[[10,20,300,400]]<|end_of_box|>")
    assert split(text, keep="boxes") == kept
    assert fed(text, keep="boxes") == kept


def test_thinking_that_the_prompt_opened() -> None:
    """Guards answers to a prompt that ends in <think>, also where they are cut off."""
    assert split("Two.</think><answer>2</answer>", thinking=True) == ("Two.", "2")
    assert split("Tw", thinking=True) == ("Tw", "")
    assert split("Tw</th", thinking=True) == split("<think>Tw</th") == ("Tw</th", "")


def test_what_is_settled_does_not_wait() -> None:
    """Guards against a stream that stalls: only what may be the start of a tag is held back."""
    splitter = ThinkingSplitter()
    pieces = ["<think>I s", "ee <", "3", "</th", "ink> ", "<answer>", "7 ", "<"]
    assert [splitter.feed(piece) for piece in pieces] == [
        ("I s", ""),
        ("ee ", ""),
        ("<3", ""),
        ("", ""),
        ("", ""),
        ("", ""),
        ("", "7 "),
        ("", ""),
    ]
    assert splitter.end() == ("", "<")


TEXTS = st.lists(
    st.one_of(st.sampled_from(TAGS), st.text("<|/>thinkaswer_ofbx \n猫", max_size=6)), max_size=8
).map("".join)


@settings(deadline=None)
@given(
    text=TEXTS,
    cuts=st.sets(st.integers(0, 60)),
    thinking=st.booleans(),
    keep=st.sampled_from(["none", "boxes", "all"]),
)
def test_any_text_in_any_pieces(text: str, cuts: set[int], thinking: bool, keep: str) -> None:
    """Guards streaming equal to not streaming, whatever the model writes."""
    places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [text[a:b] for a, b in zip(places, places[1:], strict=False)]
    whole = split(text, thinking=thinking, keep=keep)
    assert fed(pieces, thinking=thinking, keep=keep) == whole
    assert sum(map(len, whole)) <= len(text)
    assert keep != "all" or whole == ("", text)
