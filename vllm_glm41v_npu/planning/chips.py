# SPDX-License-Identifier: Apache-2.0
"""The most that each card can do, and the source of each figure.

A figure without a source, or with sources that disagree, is a guess, and is shown as one. Times are
lower bounds, so of several figures the faster is taken, unless one was measured.
"""

from __future__ import annotations

from typing import NamedTuple

from vllm_glm41v_npu.backends import ATLAS_310P, ATLAS_A2, Backend


class PlanError(ValueError):
    """A request that cannot be planned; the message says why, and what to do."""


class Figure(NamedTuple):
    """One number, in the base unit (bytes, seconds, operations), and its source."""

    value: float
    unit: str
    source: str
    guess: bool = False


class Type(NamedTuple):
    """A way to store and multiply the decoder's linear layers; the rest is in 16 bits.

    dtype: the dtype of the rest of the network; None for any of the chip's.
    is_int8: True where products are of int8.
    is_compressed: True where a weight takes less than a byte.
    """

    name: str
    dtype: str | None = None
    is_int8: bool = True
    is_compressed: bool = False


_TYPES = (
    Type("FP16", "float16", is_int8=False),
    Type("BF16", "bfloat16", is_int8=False),
    Type("W8A8"),
    Type("W8A8_DYNAMIC"),
    Type("W8A8S", "float16"),
    Type("W8A8SC", "float16", is_compressed=True),
)
TYPES = {kind.name: kind for kind in _TYPES}


class Card(NamedTuple):
    """A kind of card; its figures are of one chip.

    link, latency: of one direction between two chips, and of one all-reduce of them.
    cache_share: the share of the memory left that becomes the KV cache.
    copies_head: True where vllm-ascend keeps the head in two layouts.
    """

    name: str
    product: str
    backend: Backend
    chips: int
    memory: Figure
    bandwidth: Figure
    float16: Figure
    int8: Figure
    link: Figure
    latency: Figure
    cache_share: Figure = Figure(1.0, "", "vLLM")
    copies_head: bool = False

    def takes(self, kind: Type) -> bool:
        if kind.is_compressed and self.backend.w8a8sc_codec is None:
            return False  # nothing else decodes it
        return kind.dtype is None or kind.dtype in self.backend.dtypes


def _memory(gigabytes: int, source: str = "data sheet") -> Figure:
    return Figure(gigabytes * 1e9, "B", source)


def _cube(cores: int, gigahertz: float) -> tuple[Figure, Figure]:
    """Return the float16 and int8 figures of cores that multiply 16 x 16 x 16 in each cycle.

    In int8 they multiply twice as much.
    """
    flops = 2 * 16**3 * cores * gigahertz * 1e9
    source = f"{cores} cores x 16^3 x 2 x {gigahertz} GHz, of CANN's hardware description"
    return Figure(flops, "FLOP/s", source), Figure(2 * flops, "OP/s", f"2 x {source}")


_A2_LATENCY = Figure(20e-6, "s", "of the order of HCCL's small all-reduces", guess=True)
_A2_LINK = Figure(400e9, "B/s", "hardware descriptions say 196 to 400 GB/s", guess=True)
_A2_BANDWIDTH = Figure(1.6e12, "B/s", "hardware descriptions say 1.2 or 1.6 TB/s", guess=True)


def _a2(
    name: str, memory: int, bandwidth: Figure, link: Figure, cube: tuple[Figure, Figure]
) -> Card:
    product = f"Atlas 800I A2, Ascend {name}"
    return Card(name, product, ATLAS_A2, 1, _memory(memory), bandwidth, *cube, link, _A2_LATENCY)


def _310p(name: str, product: str, chips: int, memory: int) -> Card:
    half = "half of what the data sheet of Atlas 300I DUO says"
    return Card(
        name,
        product,
        ATLAS_310P,
        chips,
        _memory(memory),
        Figure(204.8e9, "B/s", "data sheet of Atlas 300I Pro"),
        Figure(70e12, "FLOP/s", half),
        Figure(140e12, "OP/s", half),
        Figure(10e9, "B/s", "no figure was found", guess=True),
        Figure(30e-6, "s", "no figure was found", guess=True),
        Figure(0.5, "", "vllm-ascend keeps the other half for workspaces"),
        copies_head=True,
    )


_CARDS = (
    _a2(
        "910B4",
        32,
        Figure(0.8e12, "B/s", "CANN's hardware description"),
        Figure(19e9, "B/s", "measured by HIXL between two chips; the description says 30"),
        _cube(20, 1.5),
    ),
    _a2("910B3", 64, _A2_BANDWIDTH, _A2_LINK, _cube(20, 1.8)),
    _a2("910B2", 64, _A2_BANDWIDTH, _A2_LINK, _cube(24, 1.8)),
    _310p("300I-PRO", "Atlas 300I Pro, one Ascend 310P3", 1, 24),
    _310p("300I-DUO", "Atlas 300I DUO of 48 GB, two Ascend 310P3", 2, 24),
    _310p("300I-DUO-96G", "Atlas 300I DUO of 96 GB, two Ascend 310P3", 2, 48),
)
CARDS = {card.name: card for card in _CARDS}


def find_card(name: str) -> Card:
    """Return the card of this name, in upper or lower case.

    Raises:
        PlanError: There is none.
    """
    card = CARDS.get(name.upper())
    if card is None:
        raise PlanError(f"The card {name!r} is not known. Known are {', '.join(CARDS)}.")
    return card


def find_type(name: str, card: Card) -> Type:
    """Return the type of this name, in upper or lower case.

    Raises:
        PlanError: There is none, or the card does not run it.
    """
    kind = TYPES.get(name.upper())
    runs = ", ".join(name for name in TYPES if card.takes(TYPES[name]))
    if kind is None:
        raise PlanError(f"The type {name!r} is not known. {card.product} runs {runs}.")
    if not card.takes(kind):
        raise PlanError(f"{card.product} does not run {kind.name}. It runs {runs}.")
    return kind
