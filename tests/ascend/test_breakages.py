# SPDX-License-Identifier: Apache-2.0
"""What vLLM's in-tree GLM-4.1V class gets wrong on vllm-ascend 0.23.0, and ours gets right.

Each test says what is right, and runs with both classes (see sides.py). The in-tree class has to
fail it, in the way that is written beside it: when it no longer does, its row can go, and perhaps
what this package does about it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from npu_emulator.settings import CHIPS, current_chip
from tests.ascend.networks import WAITS, ask
from tests.ascend.sides import OURS, sides

pytestmark = pytest.mark.ascend

CHECKPOINTS = {"answering": "tiny", "parts": "chip-heads"}
PLAIN_ROPE = ("mul.Tensor", "sub.Tensor", "add.Tensor", "cat", "stack", "index.Tensor")
"""The aten operators that a rope in plain PyTorch is made of."""


def on(chip: str, why: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(current_chip() is not CHIPS[chip], reason=why)


on_a2 = functools.partial(on, "A2")
on_310p = functools.partial(on, "310P")


@pytest.fixture(scope="module")
def asked(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """What networks.ask finds for a side and a subject, each asked once."""

    @functools.cache
    def find(side: str, what: str) -> dict[str, Any]:
        out = tmp_path_factory.mktemp("found") / f"{what}.json"
        return ask(side, what, checkpoint(CHECKPOINTS[what]), out)

    return find


@pytest.fixture(params=sides())
def side(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def engine(asked: Callable, side: str) -> dict[str, Any]:
    """What `networks.answering` finds."""
    return asked(side, "answering")


@pytest.fixture
def parts(asked: Callable, side: str) -> dict[str, Any]:
    """What `networks.parts` finds."""
    return asked(side, "parts")


@contextmanager
def in_tree_fails(side: str, how: str) -> Iterator[None]:
    """Ours passes what is inside; the in-tree class fails it with a message that `how` matches."""
    if side == OURS:
        yield
        return
    try:
        yield
    except AssertionError as wrong:
        assert re.search(how, str(wrong)), f"The in-tree class fails in another way: {wrong}"
    else:
        pytest.fail("vLLM's in-tree class does this right now: drop its row.")


def check_rope(step: list[dict[str, int]], kernel: str) -> None:
    """Each layer of a step rotates with one call of `kernel`, and nothing in plain PyTorch."""
    for calls in step:
        once = calls.get(f"npu::{kernel}", 0)
        plain = {name: calls[f"aten::{name}"] for name in PLAIN_ROPE if f"aten::{name}" in calls}
        assert (once, plain) == (1, {}), f"{once} calls of {kernel} in a layer, and {plain}"


@on_310p("Atlas A2 computes it otherwise")
def test_decoder_rope_is_taken_on_310p(engine: dict[str, Any], side: str) -> None:
    """Guards the decoder's rope: the chip has it in half form alone, and the checkpoint's is not.

    The whole engine answers, so text and picture are right besides.
    """
    how = r"refuses npu::npu_apply_rotary_pos_emb: rotary_mode is 'interleave'.* to be 'half'"
    with in_tree_fails(side, how):
        assert engine["error"] is None, engine["error"]
        found = engine["result"]
        assert "<answer>6021</answer>" in found["text"]
        for step in ("prefill", "decode"):
            check_rope(found[step], "npu_apply_rotary_pos_emb")


@on_a2("the kernel is Atlas A2's")
@pytest.mark.parametrize("step", ["prefill", "decode"])
def test_decoder_rope_is_one_kernel_on_a2(engine: dict[str, Any], side: str, step: str) -> None:
    """Guards against a rope in plain PyTorch in every layer, which is right and slow."""
    assert "<answer>6021</answer>" in engine["result"]["text"]
    how = r"0 calls of npu_mrope in a layer, and {'mul.Tensor': 8, .*'cat': 4, 'stack': 2"
    with in_tree_fails(side, how):
        check_rope(engine["result"][step], "npu_mrope")


@on_310p("Atlas A2 takes it")
@pytest.mark.parametrize(
    ("part", "how"),
    [
        ("picture", r"refuses aten::grid_sampler_2d: interpolation_mode is 2, .*bilinear"),
        ("merge", r"refuses aten::index_put_: indices is \[bool .*, and has to be of integers"),
    ],
    ids=["picture", "merge"],
)
def test_pictures_are_taken_on_310p(parts: dict[str, Any], side: str, part: str, how: str) -> None:
    """Guards the tower's position embedding, and the way its features get among the text's."""
    with in_tree_fails(side, how):
        assert parts[part]["error"] is None, parts[part]["error"]
    if side == OURS:
        assert parts[part]["result"] == ([24, 512] if part == "picture" else True)


@on_310p("Atlas A2 computes in bfloat16")
def test_bfloat16_is_refused_on_310p(parts: dict[str, Any], side: str) -> None:
    """Guards against wrong results without a word."""
    found = parts["bfloat16"]
    with in_tree_fails(side, r"^torch\.bfloat16 is accepted"):
        assert found["error"] is not None, f"{found['result']} is accepted"
        assert "--dtype bfloat16 computes wrong results on Atlas 310P" in found["error"]


@on_310p("Atlas A2 computes in bfloat16")
def test_auto_dtype_is_float16_on_310p(parts: dict[str, Any], side: str) -> None:
    """Guards `--dtype auto` with a checkpoint that says bfloat16, as the real one does."""
    with in_tree_fails(side, r"^torch\.bfloat16 is chosen"):
        chosen = parts["auto"]["result"]
        assert chosen == "torch.float16", f"{chosen} is chosen"


def test_no_vision_block_waits(parts: dict[str, Any], side: str) -> None:
    """Guards against a wait for the device in every block, each of which empties its queue."""
    assert parts["waits"]["error"] is None
    waits = list(parts["waits"]["result"].values())  # by depth
    assert len(waits) == 3
    with in_tree_fails(side, r"^each block waits 1 times"):
        (each,) = {deep - shallow for shallow, deep in pairwise(waits)}
        assert each == 0, f"each block waits {each} times"


def test_no_decoder_layer_waits(asked: Callable) -> None:
    """Guards the decoder's layers against the same; the in-tree class is right there on A2.

    vllm-ascend's attention copies the lengths of requests in the first layer, for all of a step.
    """
    found = asked(OURS, "answering")["result"]
    for calls in found["prefill"][1:] + found["decode"][1:]:
        assert calls and WAITS not in calls


@on_310p("vllm-ascend keeps no second copy on Atlas A2")
def test_embedding_has_no_second_copy_on_310p(parts: dict[str, Any], side: str) -> None:
    """Guards 1.2 GB of the true size: only the output projection is multiplied with."""
    copies = parts["copies"]
    assert copies["lm_head"] == [512, 512]
    with in_tree_fails(side, r"^embed_tokens has a copy of \[512, 512\]"):
        copy = copies["embed_tokens"]
        assert copy is None, f"embed_tokens has a copy of {copy}"


@on_a2("Atlas 310P refuses the in-tree class's position embedding before its numbers show")
def test_a_batch_of_two_sizes_is_each_alone(parts: dict[str, Any], side: str) -> None:
    """Guards the position embedding of each video in a batch."""
    assert parts["one size"]["result"] < 1e-3  # so that the sizes are what makes the difference
    with in_tree_fails(side, r"^apart by (0\.[1-9]|[1-9])"):
        apart = parts["two sizes"]["result"]
        assert apart < 1e-3, f"apart by {apart:.3f}"
