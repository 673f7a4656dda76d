# SPDX-License-Identifier: Apache-2.0
"""Micro batch: in a large prefill on several devices, computing and all-reduce overlap.

Everything that a decoder does between two attentions is done token by token: output projection,
norms, MLP, and the next q, k and v. There the step's tokens are cut into two halves. While the
output of one half's row-parallel layer is all-reduced in the background, the other half computes.
Attention takes all tokens at once, as without micro batch, and no metadata is cut.

    computing     o 1 | o 2 | MLP 1 | MLP 2 | qkv 1 | qkv 2 | attention | ...
    all-reduce        | o 1 | o 2   | MLP 1 | MLP 2 |

The results stay the same: only the number of rows of each product changes. MindIE cuts between
requests and keeps two of everything; here q, k and v of the halves are joined once a layer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import nn
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.distributed import get_tp_group
from vllm.forward_context import get_forward_context, is_forward_context_available

from vllm_glm41v_npu.checks import MICRO_BATCH, OptionError, micro_batch_tokens
from vllm_glm41v_npu.models.decoder import Decoder, DecoderLayer
from vllm_glm41v_npu.models.rope import RotaryStep

logger = logging.getLogger(f"vllm.{__name__}")


class Half:
    """Half of the step's tokens: their last output x, and the sum before it, the residual.

    Both are [tokens, hidden_size]; a residual of None stands for none yet.
    """

    def __init__(self, x: torch.Tensor, residual: torch.Tensor | None) -> None:
        self.x, self.residual = x, residual
        self.work: Any = None

    def start_all_reduce(self, share: torch.Tensor) -> None:
        """Make x the sum of all devices' shares, in place and in the background."""
        self.x, self.work = share, start_all_reduce(share)

    def reduced(self) -> torch.Tensor:
        """Wait for the all-reduce and return x; on an NPU the stream waits, not the host."""
        self.work.wait()
        return self.x


def start_all_reduce(share: torch.Tensor) -> Any:
    """Start an all-reduce: HCCL's runs on its own stream, gloo's in its own thread."""
    return torch.distributed.all_reduce(share, group=get_tp_group().device_group, async_op=True)


class MicroBatch:
    """Decoder that runs large prefills in two halves.

    Args:
        decoder: The network's decoder on this device.
        fewest: Smallest number of tokens of a step that is cut.
        decode_tokens: Largest number of tokens of one request in a decoding step.

    Raises:
        OptionError: vllm-ascend is told to do these all-reduces in another way.
    """

    def __init__(self, decoder: Decoder, fewest: int, decode_tokens: int = 1) -> None:
        self.decoder, self.fewest, self.decode_tokens = decoder, fewest, decode_tokens
        self.steps = 0
        """Number of steps that were cut."""
        for layer in decoder.stage_layers:
            for linear in _row_parallel(layer):
                if getattr(linear, "custom_op", None) is not None:
                    raise OptionError(
                        f"{MICRO_BATCH} in --additional-config is on beside an option of "
                        f"vllm-ascend that has an all-reduce of its own "
                        f"({type(linear.custom_op).__name__}). Leave out one of the two."
                    )

    @classmethod
    def of(cls, decoder: Decoder, vllm_config: VllmConfig) -> MicroBatch | None:
        """Make what `vllm_config` asks for; None where it asks for none, or has one device."""
        fewest = micro_batch_tokens(
            vllm_config.additional_config, lora=vllm_config.lora_config is not None
        )
        if fewest is None:
            return None
        if vllm_config.parallel_config.tensor_parallel_size == 1:
            logger.warning("Micro batch does nothing on one device: there is no all-reduce.")
            return None
        drafts = vllm_config.speculative_config
        return cls(decoder, fewest, 1 + (drafts.num_speculative_tokens if drafts else 0))

    def takes(self, tokens: int) -> bool:
        """Return whether this step is a prefill of enough tokens, outside captured graphs."""
        if tokens < self.fewest or not is_forward_context_available():
            return False
        context = get_forward_context()
        if context.cudagraph_runtime_mode != CUDAGraphMode.NONE:
            return False
        metadata = context.attn_metadata  # by layer; None while vLLM measures memory
        if not isinstance(metadata, dict):
            return False
        longest = max(attention.max_query_len for attention in metadata.values())
        return longest > self.decode_tokens

    def __call__(self, positions: torch.Tensor, **inputs: Any) -> Any:
        """Return what the decoder's forward returns."""
        self.steps += 1
        logger.debug("Micro batch: step %d, %d tokens.", self.steps, positions.shape[-1])
        if self.steps == 1:
            logger.info("Micro batch runs, for the first time with %d tokens.", positions.shape[-1])
        decoder = self.decoder
        x, residual = decoder.start(**inputs)
        half = (x.shape[0] + 1) // 2
        residuals = residual.split(half) if residual is not None else (None, None)
        halves = [Half(*pair) for pair in zip(x.split(half), residuals, strict=True)]
        with _shares(decoder):
            self._run_layers(halves, half, decoder.rotary_emb.step(positions))
        return decoder.end(
            torch.cat([half.x for half in halves]), torch.cat([half.residual for half in halves])
        )

    def _run_layers(self, halves: list[Half], tokens: int, step: RotaryStep) -> None:
        """Run all layers of this stage; the first half has `tokens` tokens."""
        layers: list[Any] = list(self.decoder.stage_layers)
        for before, layer in zip([None, *layers], layers, strict=False):
            attention = layer.self_attn
            qkv = [_qkv(half, before, layer) for half in halves]
            out = attention.attend(torch.cat(qkv), step)
            for half, rows in zip(halves, out.split(tokens), strict=True):
                half.start_all_reduce(attention.o_proj(rows)[0])
            for half in halves:
                x, half.residual = layer.add_attention(half.reduced(), half.residual)
                half.start_all_reduce(layer.mlp(x))
        for half in halves:
            half.x = layers[-1].post_mlp_layernorm(half.reduced())


def _qkv(half: Half, before: DecoderLayer | None, layer: DecoderLayer) -> torch.Tensor:
    """Return [tokens, q, k and v of this device]; waits for the all-reduce of the layer before."""
    x = half.x if before is None else before.post_mlp_layernorm(half.reduced())
    x, half.residual = layer.add_input(x, half.residual)
    return layer.self_attn.qkv_proj(x)[0]


def _row_parallel(layer: DecoderLayer) -> tuple[nn.Module, nn.Module]:
    return layer.self_attn.o_proj, layer.mlp.down_proj


@contextmanager
def _shares(decoder: Decoder) -> Iterator[None]:
    """Let row-parallel layers return this device's share; the caller does the all-reduce."""
    layers = [linear for layer in decoder.stage_layers for linear in _row_parallel(layer)]
    for linear in layers:
        linear.reduce_results = False
    try:
        yield
    finally:
        for linear in layers:
            linear.reduce_results = True
