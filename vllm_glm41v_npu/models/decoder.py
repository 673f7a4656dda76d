# SPDX-License-Identifier: Apache-2.0
"""The text decoder: grouped-query attention, SwiGLU, four norms a layer, and the output projection.

From small to large: attention, layer, decoder, language model.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import CacheConfig, VllmConfig
from vllm.distributed import divide, get_pp_group, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.models.utils import (
    PPMissingLayer,
    make_empty_intermediate_tensors_factory,
    make_layers,
    maybe_prefix,
)
from vllm.sequence import IntermediateTensors

from vllm_glm41v_npu.backends import current_backend, resolve
from vllm_glm41v_npu.checkpoint.names import DECODER_PARTS
from vllm_glm41v_npu.models.mlp import SwiGLU
from vllm_glm41v_npu.models.overflow import summands
from vllm_glm41v_npu.models.rope import RotaryStep, text_rotary_embedding


class DecoderAttention(nn.Module):
    """Grouped-query attention. q, k and v always have a bias, whatever the config says."""

    def __init__(
        self,
        config,
        rotary_emb: nn.Module,
        cache_config: CacheConfig | None = None,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        tp_size = get_tensor_model_parallel_world_size()
        head_dim = divide(config.hidden_size, config.num_attention_heads)
        num_heads = divide(config.num_attention_heads, tp_size)
        # With more ranks than key-value heads, each head is kept on several ranks.
        num_kv_heads = max(1, config.num_key_value_heads // tp_size)
        self.q_size = num_heads * head_dim
        self.kv_size = num_kv_heads * head_dim
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            head_dim,
            config.num_attention_heads,
            config.num_key_value_heads,
            bias=True,
            quant_config=quant_config,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            config.num_attention_heads * head_dim,
            config.hidden_size,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.o_proj",
        )
        self.attn = Attention(
            num_heads,
            head_dim,
            head_dim**-0.5,
            num_kv_heads=num_kv_heads,
            cache_config=cache_config,
            quant_config=quant_config,
            prefix=f"{prefix}.attn",
        )
        self.rotary_emb = rotary_emb  # one for all layers

    def forward(self, x: torch.Tensor, step: RotaryStep) -> torch.Tensor:
        """[tokens, hidden_size] to the same shape."""
        qkv, _ = self.qkv_proj(x)
        out, _ = self.o_proj(self.attend(qkv, step))
        return out

    def attend(self, qkv: torch.Tensor, step: RotaryStep) -> torch.Tensor:
        """[tokens, q_size + 2 * kv_size] to [tokens, q_size]."""
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        q, k = self.rotary_emb(step, q, k)
        return self.attn(q, k, v)


class DecoderLayer(nn.Module):
    """Attention and MLP, each normed before and after; the additions are fused into norms."""

    def __init__(
        self,
        config,
        rotary_emb: nn.Module,
        cache_config: CacheConfig | None = None,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.self_attn = DecoderAttention(
            config, rotary_emb, cache_config, quant_config, prefix=f"{prefix}.self_attn"
        )
        self.mlp = SwiGLU(
            config.hidden_size, config.intermediate_size, quant_config, prefix=f"{prefix}.mlp"
        )
        size, eps = config.hidden_size, config.rms_norm_eps
        input_norm = resolve(current_backend().input_norm)
        self.input_layernorm = input_norm(size, eps=eps)
        self.post_self_attn_layernorm = RMSNorm(size, eps=eps)
        self.post_attention_layernorm = input_norm(size, eps=eps)
        self.post_mlp_layernorm = RMSNorm(size, eps=eps)
        # Nothing else reads the input norms' output, so a quantized layer may ask for it in int8.
        # A tuple keeps the norm from becoming a submodule of the linear layer.
        self.self_attn.qkv_proj.input_norms = (self.input_layernorm,)
        self.mlp.gate_up_proj.input_norms = (self.post_attention_layernorm,)
        self.saturates = False  # set in float16 where the weights demand it; see overflow.py

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None, step: RotaryStep
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run a layer on x and residual [tokens, hidden_size]: the last output, the sum before it.

        Returns both for the next layer; a residual of None stands for none yet.
        """
        x, residual = self.add_input(x, residual)
        x = self.self_attn(x, step)
        x, residual = self.add_attention(x, residual)
        x = self.post_mlp_layernorm(self.mlp(x))
        return x, residual

    def add_input(
        self, x: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the input of attention, and the sum with x in it."""
        if residual is None:
            return self.input_layernorm(x), x
        return self.input_layernorm(*summands(x, residual, self.saturates))

    def add_attention(
        self, x: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the input of the MLP, and the sum with attention's output x in it."""
        x = self.post_self_attn_layernorm(x)
        return self.post_attention_layernorm(*summands(x, residual, self.saturates))


class LookupEmbedding(UnquantizedEmbeddingMethod):
    """Lookup-only embedding: skips vLLM's repacked copy, 1.2 GB at the true size.

    On CPUs and on Atlas 300I DUO vLLM repacks every table for products, which only an output
    projection needs.
    """

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Leave the table as it is."""


@support_torch_compile(
    dynamic_arg_dims={
        "input_ids": 0,
        "positions": -1,  # [tokens] or [3, tokens]
        "intermediate_tensors": 0,
        "inputs_embeds": 0,
    }
)
class Decoder(nn.Module):
    """Embedding, layers and final norm of this pipeline stage."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        first, last = get_pp_group().is_first_rank, get_pp_group().is_last_rank
        self.embed_tokens: nn.Module = PPMissingLayer()
        if first or (last and config.tie_word_embeddings):
            self.embed_tokens = VocabParallelEmbedding(
                config.vocab_size,
                config.hidden_size,
                quant_config=vllm_config.quant_config,
                prefix=f"{prefix}.embed_tokens",
            )
            float_method = isinstance(self.embed_tokens.quant_method, UnquantizedEmbeddingMethod)
            if float_method and not config.tie_word_embeddings:
                self.embed_tokens.quant_method = LookupEmbedding()
        self.rotary_emb = text_rotary_embedding(
            config, vllm_config.model_config.dtype, vllm_config.model_config.max_model_len
        )
        self.start_layer, self.end_layer, self.layers = make_layers(
            config.num_hidden_layers,
            lambda prefix: DecoderLayer(
                config,
                self.rotary_emb,
                vllm_config.cache_config,
                vllm_config.quant_config,
                prefix,
            ),
            prefix=f"{prefix}.layers",
        )
        self.norm = (
            RMSNorm(config.hidden_size, eps=config.rms_norm_eps) if last else PPMissingLayer()
        )
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(
            ["hidden_states", "residual"], config.hidden_size
        )

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.embed_tokens(input_ids)

    @property
    def stage_layers(self) -> Iterable[nn.Module]:
        """The decoder layers of this pipeline stage."""
        return islice(self.layers, self.start_layer, self.end_layer)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        """Return the last stage's hidden states [tokens, hidden_size], or the next stage's inputs.

        Args:
            input_ids: int [tokens], where there are no `inputs_embeds`.
            positions: int64 [3, tokens], or [tokens] where the three axes agree.
            intermediate_tensors: x and residual of the stage before.
            inputs_embeds: [tokens, hidden_size], text and media.
        """
        x, residual = self.start(input_ids, intermediate_tensors, inputs_embeds)
        step = self.rotary_emb.step(positions)
        for layer in self.stage_layers:
            x, residual = layer(x, residual, step)
        return self.end(x, residual)

    def start(
        self,
        input_ids: torch.Tensor | None,
        intermediate_tensors: IntermediateTensors | None,
        inputs_embeds: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return x and residual for this stage's first layer."""
        if not get_pp_group().is_first_rank:
            assert intermediate_tensors is not None
            return intermediate_tensors["hidden_states"], intermediate_tensors["residual"]
        if inputs_embeds is not None:
            return inputs_embeds, None
        assert input_ids is not None
        return self.embed_input_ids(input_ids), None

    def end(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor | IntermediateTensors:
        """Return forward's result, made from the last layer's x and residual."""
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({"hidden_states": x, "residual": residual})
        saturates = self.layers[self.end_layer - 1].saturates
        x, _ = self.norm(*summands(x, residual, saturates))
        return x


class LanguageModel(nn.Module):
    """The decoder and its output projection; `hf_config` is the checkpoint's text config."""

    packed_modules_mapping = {fused: list(parts) for fused, parts in DECODER_PARTS.items()}

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.model = Decoder(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors
        self.lm_head: nn.Module = PPMissingLayer()
        if get_pp_group().is_last_rank:
            self.lm_head = (
                self.model.embed_tokens
                if config.tie_word_embeddings
                else ParallelLMHead(
                    config.vocab_size,
                    config.hidden_size,
                    quant_config=vllm_config.quant_config,
                    prefix=maybe_prefix(prefix, "lm_head"),
                )
            )
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """[tokens, hidden_size] to [tokens, vocab_size] on the rank that samples, else None."""
        return self.logits_processor(self.lm_head, hidden_states)
