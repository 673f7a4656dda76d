# SPDX-License-Identifier: Apache-2.0
"""The least times that a card's figures allow, and the load that fits its memory.

Each phase of a request computes, reads memory, and all-reduces between chips. Computing and reading
can overlap; all-reduces are assumed not to. So a phase takes the longer of the first two, and the
third. The all-reduces of the vision tower are left out, and so are reads and writes beside weights
and KV cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vllm_glm41v_npu.checkpoint.shapes import uneven
from vllm_glm41v_npu.planning.chips import Card, Figure, PlanError, Type
from vllm_glm41v_npu.planning.model_size import Model, Picture

ACTIVATIONS = Figure(1.5e9, "B", "of the order that vLLM sets aside", guess=True)
"""Memory on each chip beside weights and KV cache."""

COMPRESSED = Figure(0.6, "of int8", "no checkpoint of the 9B was compressed yet", guess=True)
"""The part of a weight's bytes that is left after W8A8SC."""


@dataclass(frozen=True)
class Bound:
    """The seconds of a phase: computing, reading memory, all-reduces over the link."""

    compute: float
    memory: float
    link: float = 0.0

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory) + self.link

    @property
    def limited_by(self) -> str:
        """The name of the longest of the three."""
        return max(vars(self), key=lambda name: vars(self)[name])


@dataclass(frozen=True)
class Memory:
    """The memory of each chip, in bytes; tokens and sequences are of all chips together."""

    total: float
    usable: float
    weights: float
    activations: float
    second_head: float
    cache_share: float
    kv_token: int
    context: float

    @property
    def kv_cache(self) -> float:
        left = self.usable - self.weights - self.activations - self.second_head
        return max(0.0, left) * self.cache_share

    @property
    def kv_tokens(self) -> int:
        return int(self.kv_cache / self.kv_token)

    @property
    def sequences(self) -> int:
        return int(self.kv_tokens / self.context)


@dataclass(frozen=True)
class Plan:
    """One model on some cards.

    Args:
        card: The kind of card.
        type: The type of the decoder's linear layers; one that the card runs.
        cards: Their number; all their chips are one tensor-parallel group.
        model: The published one by default.
        utilization: vLLM's --gpu-memory-utilization.
        quantized_down_proj: True where it is quantized like the other layers.
        ratio: The part of a weight's bytes that is left after W8A8SC.

    Raises:
        PlanError: The chips cannot share the network.
    """

    card: Card
    type: Type
    cards: int = 1
    model: Model = field(default_factory=Model.published)
    utilization: float = 0.9
    quantized_down_proj: bool = False
    ratio: Figure = COMPRESSED

    def __post_init__(self) -> None:
        if wrong := uneven(self.model.config, self.chips):
            raise PlanError(
                f"{self.cards} x {self.card.product} are {self.chips} chips, which cannot share "
                f"{', '.join(wrong)} evenly. Plan fewer cards, or several servers."
            )

    @property
    def chips(self) -> int:
        return self.cards * self.card.chips

    @property
    def figures(self) -> dict[str, Figure]:
        """The figures that the plan rests on, by name."""
        card = self.card
        figures = {
            "memory": card.memory,
            "bandwidth": card.bandwidth,
            "16-bit products": card.float16,
            "activations": ACTIVATIONS,
        }
        if card.cache_share.value < 1:
            figures["share of KV cache"] = card.cache_share
        if self.type.is_int8:
            figures["int8 products"] = card.int8
        if self.chips > 1:
            figures |= {"link": card.link, "latency": card.latency}
        if self.type.is_compressed:
            figures["compressed weight"] = self.ratio
        return figures

    @property
    def _quantized(self) -> int:
        """The count of weights that are multiplied in int8."""
        if not self.type.is_int8:
            return 0
        return self.model.linear - (0 if self.quantized_down_proj else self.model.down_proj)

    @property
    def _saved(self) -> float:
        """The bytes that quantizing saves, against all weights in 16 bits."""
        return self._quantized * (2 - (self.ratio.value if self.type.is_compressed else 1))

    @property
    def weight_bytes(self) -> float:
        """Bytes of the whole checkpoint."""
        return 2 * self.model.total - self._saved

    @property
    def step_bytes(self) -> float:
        """Bytes of the weights that each step of the decoder reads."""
        return 2 * (self.model.linear + self.model.head) - self._saved

    def memory(self, context: float) -> Memory:
        """Return the memory for sequences of `context` tokens."""
        total = self.card.memory.value
        return Memory(
            total,
            total * self.utilization,
            self.weight_bytes / self.chips,
            ACTIVATIONS.value,
            2 * self.model.head * self.card.copies_head / self.chips,
            self.card.cache_share.value,
            self.model.kv_bytes(self.chips),
            context,
        )

    def vision(self, pictures: Sequence[Picture]) -> Bound:
        """Return the times of the vision tower, for the pictures of one prompt."""
        model = self.model
        hidden = model.vision.hidden_size
        for_patch = 2 * (model.vision_block + model.geometry.row_size * hidden)
        flops = 0
        for _, _, patches, tokens in pictures:
            attention = 4 * model.vision.depth * hidden * patches**2
            flops += for_patch * patches + attention + 2 * model.vision_merging * tokens
        read = 2 * model.vision_total if pictures else 0
        return Bound(self._compute(flops), self._read(read))

    def prefill(self, tokens: float) -> Bound:
        """Return the times of one prompt in the decoder; the head computes its last token alone."""
        attention = self._attention(tokens, tokens) / 2  # each token sees those before it
        compute = self._compute(2 * self.model.head + attention) + self._layers(tokens)
        return Bound(compute, self._read(self.step_bytes), self._all_reduces(tokens))

    def decode(self, batch: float, context: float) -> Bound:
        """Return the times of one token of each of `batch` sequences."""
        flops = 2 * batch * self.model.head + self._attention(batch, context)
        cache = batch * context * self.model.kv_bytes(self.chips)
        memory = self._read(self.step_bytes) + cache / self.card.bandwidth.value
        return Bound(self._compute(flops) + self._layers(batch), memory, self._all_reduces(batch))

    def _layers(self, tokens: float) -> float:
        """Return the seconds of the decoder's linear layers."""
        in_float = self._compute(2 * (self.model.linear - self._quantized) * tokens)
        return in_float + 2 * self._quantized * tokens / (self.card.int8.value * self.chips)

    def _attention(self, queries: float, keys: float) -> float:
        text = self.model.text
        return 4 * text.num_hidden_layers * text.hidden_size * queries * keys

    def _compute(self, flops: float) -> float:
        return flops / (self.card.float16.value * self.chips)

    def _read(self, size: float) -> float:
        return size / (self.card.bandwidth.value * self.chips)

    def _all_reduces(self, tokens: float) -> float:
        """Return the seconds of the two all-reduces of each layer, in 16 bits."""
        if self.chips == 1:
            return 0.0
        text, chips = self.model.text, self.chips
        sent = tokens * text.hidden_size * 2 * 2 * (chips - 1) / chips
        each = self.card.latency.value + sent / self.card.link.value
        return 2 * text.num_hidden_layers * each
