# SPDX-License-Identifier: Apache-2.0
"""transformers' own network, of which one block at a time has weights.

The calibration set goes through the network block by block: all of its samples through one block,
then all through the next. Between them only hidden states are kept. Everything is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers.models.glm4v.modeling_glm4v import (
    Glm4vModel,
    Glm4vTextRotaryEmbedding,
    Glm4vVisionRotaryEmbedding,
)

from vllm_glm41v_npu.checkpoint.names import EMBEDDING, NEWER, disk_name
from vllm_glm41v_npu.quant.quantizer.plan import Block, Plan
from vllm_glm41v_npu.quant.quantizer.source import Source

Sample = dict[str, Tensor]
"""A processor's output for one conversation: input_ids, pixel_values, image_grid_thw, ..."""

Observe = Callable[[int, str, Tensor], None]
"""Called with a sample's number, a module's name inside its block, and its input [tokens, K]."""


@dataclass
class State:
    """The input of a block for one sample."""

    hidden: Tensor
    arguments: dict[str, Any]


class _Reached(Exception):
    """The forward pass has reached the first of the blocks."""

    def __init__(self, state: State) -> None:
        self.state = state


class _Stop(nn.Module):
    """Stands in place of the blocks, to find out what the first of them gets."""

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        raise _Reached(State(hidden_states, arguments))


class _Replay(nn.Module):
    """Stands in place of the blocks, and returns what the last of them returned."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        return self.hidden


class _Rows(nn.Module):
    """The embedding table, in the file's dtype and, where it is mapped, never in memory."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, input_ids: Tensor) -> Tensor:
        return embedding(input_ids, self.table).float()


class Network:
    """Runs the calibration set through the float checkpoint.

    Raises:
        QuantizerError: A tensor is missing or has another shape than config.json says.
    """

    def __init__(self, source: Source, samples: Sequence[Sample]) -> None:
        self.source = source
        self.samples = samples
        with torch.device("meta"):
            self.model = Glm4vModel(source.config).eval()
        for name, param in self.model.named_parameters():
            source.check(f"model.{name}", tuple(param.shape))
        text, vision = self.model.language_model, self.model.visual
        self.layers, self.vision_blocks = text.layers, vision.blocks
        text.embed_tokens = _Rows(source.read(disk_name(EMBEDDING)))
        text.rotary_emb = Glm4vTextRotaryEmbedding(source.config.text_config)
        settings = source.config.vision_config
        head_size = settings.hidden_size // settings.num_heads
        vision.rotary_pos_emb = Glm4vVisionRotaryEmbedding(head_size // 2)

    @torch.inference_mode()
    def run(self, plan: Plan, observe: Observe) -> Iterator[tuple[Block, nn.Module]]:
        """Each block that has quantized layers, after the calibration set went through it.

        The block's module has its weights until the next one is asked for.
        """
        vision, text = self.model.visual, self.model.language_model
        text.layers = nn.ModuleList([_Stop()])
        with self._filled_outside_blocks(vision, NEWER.vision):
            vision.blocks = nn.ModuleList([_Stop()])
            states = [self._reach(sample) for sample in self.samples]
            # A sample without pictures is at the decoder already.
            seen = [index for index, sample in enumerate(self.samples) if _has_media(sample)]
            yield from self._blocks(
                plan.vision, self.vision_blocks, {index: states[index] for index in seen}, observe
            )
            with _observing(vision.merger, plan.merger, observe) as current:
                for index in seen:
                    current[0] = index
                    vision.blocks = nn.ModuleList([_Replay(states[index].hidden)])
                    states[index] = self._reach(self.samples[index])
            yield plan.merger, vision.merger
        yield from self._blocks(plan.text, self.layers, dict(enumerate(states)), observe)

    def _reach(self, sample: Sample) -> State:
        try:
            self.model(**sample, use_cache=False)
        except _Reached as reached:
            return reached.state
        raise AssertionError("transformers' forward pass has run no block")

    @contextmanager
    def _filled_outside_blocks(self, vision: nn.Module, prefix: str) -> Iterator[None]:
        """Weights for everything in the vision tower but its blocks."""
        parts = {name: part for name, part in vision.named_children() if name != "blocks"}
        for name, part in parts.items():
            self.source.fill(part, f"{prefix}{name}.")
        yield
        for part in parts.values():
            part.to("meta")

    def _blocks(
        self,
        blocks: Sequence[Block],
        modules: nn.ModuleList,
        states: dict[int, State],
        observe: Observe,
    ) -> Iterator[tuple[Block, nn.Module]]:
        for block, module in zip(blocks, modules, strict=True):
            self.source.fill(module, block.prefix)
            with _observing(module, block, observe) as current:
                for index, state in states.items():
                    current[0] = index
                    state.hidden = module(state.hidden, **state.arguments)
            yield block, module
            module.to("meta")


def _has_media(sample: Sample) -> bool:
    return "pixel_values" in sample or "pixel_values_videos" in sample


@contextmanager
def _observing(module: nn.Module, block: Block, observe: Observe) -> Iterator[list[int]]:
    """Lets `observe` see the input of each group; yields where to put the sample's number."""
    current = [0]

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        # [..., K] -> [tokens, K]
        return lambda _, inputs: observe(current[0], name, inputs[0].flatten(0, -2))

    handles = [
        module.get_submodule(group.modules[0]).register_forward_pre_hook(hook(group.modules[0]))
        for group in block.groups
    ]
    try:
        yield current
    finally:
        for handle in handles:
            handle.remove()
