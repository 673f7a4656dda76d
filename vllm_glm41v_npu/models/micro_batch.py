# SPDX-License-Identifier: Apache-2.0
"""Micro batch: of a large prefill on several devices, one half computes while the other sums up.

All that a decoder does between two attentions is done token by token: output projection, norms,
MLP, and the next q, k and v. So there the step's tokens are cut in two halves. What a row-parallel
layer of one half gives is summed over the devices in the background, and meanwhile the other half
computes. Attention sees all tokens at once, as ever, and no metadata is cut.

    computing   o 1 | o 2 | MLP 1 | MLP 2 | qkv 1 | qkv 2 | attention | ...
    summing         | o 1 | o 2   | MLP 1 | MLP 2 |

Each number is what it is without: only the products' count of rows changes. MindIE cuts between
requests, and keeps two of everything; here q, k and v of the halves are put together once a layer.
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

logger = logging.getLogger(f"vllm.{__name__}")


class Half:
    """Some of the step's tokens: what was computed last for them, and the sum before it.

    x and residual are [tokens, hidden_size]; a residual of None stands for none yet.
    """

    def __init__(self, x: torch.Tensor, residual: torch.Tensor | None) -> None:
        self.x, self.residual = x, residual
        self.work: Any = None

    def sum_up(self, share: torch.Tensor) -> None:
        """Begin to add what the other devices have to this one's share, in place."""
        self.x, self.work = share, start_sum(share)

    def summed(self) -> torch.Tensor:
        """The sum over all devices; on an NPU its stream waits, and not the host."""
        self.work.wait()
        return self.x


def start_sum(share: torch.Tensor) -> Any:
    """An all-reduce in the background: HCCL's on its own stream, gloo's in its own thread."""
    return torch.distributed.all_reduce(share, group=get_tp_group().device_group, async_op=True)


class MicroBatch:
    """Runs a decoder in two halves, where that is worth it.

    Args:
        decoder: The network's, on this device.
        fewest: Tokens of a step that is cut, at least.
        decode_tokens: Tokens that a request has in a step of decoding, at most.
    """

    def __init__(self, decoder: Decoder, fewest: int, decode_tokens: int = 1) -> None:
        self.decoder, self.fewest, self.decode_tokens = decoder, fewest, decode_tokens
        self.steps = 0
        """How many steps were cut."""
        for layer in decoder.stage_layers:
            for linear in _row_parallel(layer):
                if getattr(linear, "custom_op", None) is not None:
                    raise OptionError(
                        f"{MICRO_BATCH} in --additional-config is on beside an option of "
                        f"vllm-ascend that sums up in its own way "
                        f"({type(linear.custom_op).__name__}). Leave out one of the two."
                    )

    @classmethod
    def of(cls, decoder: Decoder, vllm_config: VllmConfig) -> MicroBatch | None:
        """As `vllm_config` asks for; None where it does not, or there is only one device."""
        fewest = micro_batch_tokens(
            vllm_config.additional_config, lora=vllm_config.lora_config is not None
        )
        if fewest is None:
            return None
        if vllm_config.parallel_config.tensor_parallel_size == 1:
            logger.warning("Micro batch does nothing on one device: there is nothing to sum up.")
            return None
        guesses = vllm_config.speculative_config
        return cls(decoder, fewest, 1 + (guesses.num_speculative_tokens if guesses else 0))

    def takes(self, tokens: int) -> bool:
        """Whether this step is a prefill of enough tokens, outside captured graphs."""
        if tokens < self.fewest or not is_forward_context_available():
            return False
        context = get_forward_context()
        if context.cudagraph_runtime_mode != CUDAGraphMode.NONE:
            return False
        metadata = context.attn_metadata  # by layer; none when vLLM measures memory
        if not isinstance(metadata, dict):
            return False
        longest = max(attention.max_query_len for attention in metadata.values())
        return longest > self.decode_tokens

    def __call__(self, positions: torch.Tensor, **inputs: Any) -> Any:
        """As the decoder's forward."""
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

    def _run_layers(
        self, halves: list[Half], tokens: int, rope_step: tuple[torch.Tensor, ...]
    ) -> None:
        """All layers of this stage; `tokens` are those of the first half."""
        layers: list[Any] = list(self.decoder.stage_layers)
        for before, layer in zip([None, *layers], layers, strict=False):
            attention = layer.self_attn
            qkv = [_qkv(half, before, layer) for half in halves]
            out = attention.attend(torch.cat(qkv), self.decoder.rotary_emb, rope_step)
            for half, rows in zip(halves, out.split(tokens), strict=True):
                half.sum_up(attention.o_proj(rows)[0])
            for half in halves:
                x, half.residual = layer.add_attention(half.summed(), half.residual)
                half.sum_up(layer.mlp(x))
        for half in halves:
            half.x = layers[-1].post_mlp_layernorm(half.summed())


def _qkv(half: Half, before: DecoderLayer | None, layer: DecoderLayer) -> torch.Tensor:
    """[tokens, q, k and v of this device], once the layer before has its MLP's sum."""
    x = half.x if before is None else before.post_mlp_layernorm(half.summed())
    x, half.residual = layer.add_input(x, half.residual)
    return layer.self_attn.qkv_proj(x)[0]


def _row_parallel(layer: DecoderLayer) -> tuple[nn.Module, nn.Module]:
    return layer.self_attn.o_proj, layer.mlp.down_proj


@contextmanager
def _shares(decoder: Decoder) -> Iterator[None]:
    """Within, row-parallel layers return this device's share and leave the sum to the caller."""
    layers = [linear for layer in decoder.stage_layers for linear in _row_parallel(layer)]
    for linear in layers:
        linear.reduce_results = False
    try:
        yield
    finally:
        for linear in layers:
            linear.reduce_results = True
