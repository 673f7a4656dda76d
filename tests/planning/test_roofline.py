# SPDX-License-Identifier: Apache-2.0
"""The bounds against a table of them that was worked out apart from this package."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from vllm_glm41v_npu.planning.chips import CARDS, PlanError, find_card, find_type
from vllm_glm41v_npu.planning.model_size import Model
from vllm_glm41v_npu.planning.roofline import Plan

DATA = Path(__file__).parents[1] / "data"
MODEL = Model.published()
PICTURE = MODEL.picture(1024, 1024)
PROMPT, CONTEXT = PICTURE.tokens + 31, 2048
TOLERANCE = 0.005

# Milliseconds of a token, alone; tokens a second of 32 sequences; milliseconds of the vision tower,
# the prefill's products, its sums, and the first token; thousands of tokens that fit. All linear
# layers are quantized.
TABLE = """
910B4     1 BF16    22.1  1265  51   96    0  146   164
910B4     1 W8A8    11.9  2119  51   49    0  100   363
910B4     2 BF16    12.7  2084  25   48   50  123   830
910B4     2 W8A8     7.6  3120  25   25   50  100  1030
910B3     1 BF16    11.0  2529  42   80    0  122   867
910B3     1 W8A8     5.9  4237  42   41    0   83  1066
300I-PRO  1 FP16    86     324 178  336    0  513     0
300I-PRO  1 W8A8    46.3   542 178  172    0  350   187
300I-PRO  1 W8A8SC  30.4   743 178  172    0  350   267
300I-DUO  1 W8A8    25.6   941  89   86   94  269   678
300I-DUO  1 W8A8SC  17.7  1229  89   86   94  269   758
"""


def plan(card: str, cards: int, kind: str, quantized_down_proj: bool = True) -> Plan:
    found = find_card(card)
    return Plan(
        found, find_type(kind, found), cards, MODEL, quantized_down_proj=quantized_down_proj
    )


def printed(value: float, text: str) -> bool:
    """Whether a value is within the tolerance of a printed one, or the rounding of its digits."""
    rounding = 0.5 * 10 ** -len(text.partition(".")[2])
    return math.isclose(value, float(text), rel_tol=TOLERANCE, abs_tol=rounding)


@pytest.mark.parametrize("row", TABLE.strip().splitlines())
def test_floors_and_room(row):
    """Guards against a bound that is not the formula's."""
    card, cards, kind, *expected = row.split()
    cards_plan = plan(card, int(cards), kind)
    alone, together = (cards_plan.decode(batch, CONTEXT).seconds for batch in (1, 32))
    vision, prefill = cards_plan.vision([PICTURE]), cards_plan.prefill(PROMPT)
    # The table knows nothing of what vllm-ascend keeps on Atlas 310P.
    memory = replace(cards_plan.memory(CONTEXT), second_head=0, cache_share=1)
    found = [
        1e3 * alone,
        32 / together,
        1e3 * vision.seconds,
        1e3 * prefill.compute,
        1e3 * prefill.link,
        1e3 * (vision.seconds + prefill.seconds),
        memory.kv_tokens / 1e3,
    ]
    assert [v for v, text in zip(found, expected, strict=True) if not printed(v, text)] == []


@pytest.mark.parametrize(
    ("kind", "gigabytes"), [("FP16", "20.59"), ("W8A8", "12.43"), ("W8A8S", "12.43")]
)
def test_weights(kind, gigabytes):
    """Guards against layers that are counted in the wrong type."""
    assert printed(plan("910B4", 1, kind).weight_bytes / 1e9, gigabytes)


def test_down_proj_is_in_float():
    """Guards against a floor for fewer bytes than a checkpoint has."""
    ours, all_int8 = (plan("910B4", 1, "W8A8", choice) for choice in (False, True))
    kept = 40 * 13696 * 4096
    assert ours.weight_bytes - all_int8.weight_bytes == kept
    assert ours.step_bytes - all_int8.step_bytes == kept
    # 16-bit products take twice the time.
    more = ours.prefill(PROMPT).compute - all_int8.prefill(PROMPT).compute
    assert more == pytest.approx(2 * kept * PROMPT / CARDS["910B4"].int8.value)


def test_counts_of_the_published_model():
    """Guards against constants other than those of the real network (transformers' meta device)."""
    total = (DATA / "parameter_shapes.txt").read_text().splitlines()[-1]
    assert total == f"# total {MODEL.total}"
    assert printed(MODEL.linear / 40 / 1e6, "203.95")
    assert printed(MODEL.head / 1e9, "0.621")
    assert printed(MODEL.vision_total / 1e9, "0.892")
    assert MODEL.kv_bytes(1) == 40_960


@pytest.mark.parametrize(
    ("size", "patches", "tokens"),
    [
        ((336, 336), 576, 144),
        ((1024, 1024), 5476, 1369),
        ((1920, 1080), 10764, 2691),
        ((3840, 2160), 24128, 6032),
    ],
)
def test_pictures(size, patches, tokens):
    """Guards against other limits of pictures than the published ones."""
    assert MODEL.picture(*size)[2:] == (patches, tokens)


def test_flops_of_the_vision_tower():
    """Guards against a formula that fits at one size alone: 12.46 TFLOP at 1024 x 1024, and the
    square of attention in one picture of four times as many patches, not in four pictures."""
    cards = plan("910B4", 1, "FP16")
    peak = cards.card.float16.value
    one, four = ([PICTURE] * count for count in (1, 4))
    assert cards.vision(one).compute * peak / 1e12 == pytest.approx(12.46, rel=TOLERANCE)
    assert cards.vision(four).compute == pytest.approx(4 * cards.vision(one).compute)
    large = MODEL.picture(2072, 2072)
    assert large.patches == 4 * PICTURE.patches
    more = 24 * 4 * 1536 * (4**2 - 4) * PICTURE.patches**2 / peak
    assert cards.vision([large]).compute - cards.vision(four).compute == pytest.approx(more)


@pytest.mark.parametrize(
    ("name", "like", "compute", "memory", "chips"),
    [
        ("910B2", "910B3", 24 / 20, 1, 1),  # 24 cores of the same, beside the same memory
        ("910B3", "910B4", 1.8 / 1.5, 64 / 32, 1),  # 20 cores of either; GHz and GB
        ("300I-DUO", "300I-PRO", 1, 1, 2),  # a second chip
        ("300I-DUO-96G", "300I-DUO", 1, 2, 1),
    ],
)
def test_cards_beside_each_other(name, like, compute, memory, chips):
    """Guards against a row of which one number is another card's."""
    card, other = find_card(name), find_card(like)
    assert card.chips == chips * other.chips
    for figure, ratio in (("float16", compute), ("int8", compute), ("memory", memory)):
        one, two = getattr(card, figure), getattr(other, figure)
        assert one.value == pytest.approx(ratio * two.value), figure
    assert card.int8.value == pytest.approx(2 * card.float16.value)
    assert (card.backend, card.copies_head) == (other.backend, other.copies_head)
    if name != "910B3":  # whose memory is another kind than a 910B4's
        assert (card.bandwidth, card.link) == (other.bandwidth, other.link)
    assert name.removesuffix("-96G") in card.product.upper().replace(" ", "-")


def test_what_limits():
    """Guards against a limit that is not the longest part."""
    cards = plan("910B4", 2, "W8A8")
    assert cards.prefill(PROMPT).limited_by == "link"
    assert cards.vision([PICTURE]).limited_by == "compute"
    assert cards.decode(1, CONTEXT).limited_by == "memory"


def test_room_on_310p():
    """Guards against room that vllm-ascend keeps: half, after a copy of the head."""
    memory = plan("300I-DUO-96G", 1, "FP16").memory(CONTEXT)
    head = 2 * 151552 * 4096
    left = 2 * (0.9 * 48e9 - 1.5e9) - 2 * MODEL.total - head
    assert memory.kv_tokens == int(left / 2 / 40_960)


def test_key_value_heads_repeat():
    """Guards against room that four ranks of two heads do not have."""
    two, four = (plan("910B4", cards, "FP16").memory(CONTEXT) for cards in (2, 4))
    assert (two.kv_token, four.kv_token) == (20_480, 20_480)
    assert four.kv_tokens == int((28.8e9 - 1.5e9 - 2 * MODEL.total / 4) / 20_480)


def test_ranks_that_cannot_share():
    """Guards against a plan that vLLM would refuse, of a vision tower with 12 heads."""
    with pytest.raises(PlanError, match="3 chips, which cannot share 32 attention heads"):
        plan("910B4", 3, "FP16")
    with pytest.raises(PlanError, match="8 chips, which cannot share 12 vision heads evenly"):
        plan("300I-DUO", 4, "FP16")


@pytest.mark.parametrize("name", CARDS)
def test_figures_have_a_source(name):
    """Guards against a number that nobody can check."""
    cards = plan(name, 1, "W8A8")
    assert all(figure.source and figure.value > 0 for figure in cards.figures.values())
    assert cards.figures["activations"].guess
