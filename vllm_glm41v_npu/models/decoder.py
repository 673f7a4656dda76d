# SPDX-License-Identifier: Apache-2.0
"""The text decoder: grouped-query attention with partial rope, four norms a layer, SwiGLU."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import CacheConfig, VllmConfig
from vllm.distributed import divide, get_pp_group, get_tensor_model_parallel_world_size
from vllm.lora.layers import BaseLayerWithLoRA
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.utils import (
    PPMissingLayer,
    make_empty_intermediate_tensors_factory,
    make_layers,
)
from vllm.sequence import IntermediateTensors

from vllm_glm41v_npu.models.embedding import look_up_only
from vllm_glm41v_npu.models.lora import deinterleave_adapters
from vllm_glm41v_npu.models.overflow import summands
from vllm_glm41v_npu.models.rope import rotary_dim, text_rotary_embedding


class DecoderAttention(nn.Module):
    """Grouped-query attention. q, k and v always have a bias, whatever the config says."""

    def __init__(
        self,
        config,
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
        self.head_dim, self.rotary_dim = head_dim, rotary_dim(config)

    def __setattr__(self, name: str, value: object) -> None:
        """Notices when vLLM puts a LoRA wrapper in the place of `qkv_proj`."""
        if name == "qkv_proj" and isinstance(value, BaseLayerWithLoRA):
            deinterleave_adapters(value, self.head_dim, self.rotary_dim)
        super().__setattr__(name, value)

    def forward(
        self, x: torch.Tensor, rotary_emb: nn.Module, rope_step: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """[tokens, hidden_size] to the same shape."""
        qkv, _ = self.qkv_proj(x)
        out, _ = self.o_proj(self.attend(qkv, rotary_emb, rope_step))
        return out

    def attend(
        self, qkv: torch.Tensor, rotary_emb: nn.Module, rope_step: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """[tokens, q_size + 2 * kv_size] to [tokens, q_size]."""
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        q, k = rotary_emb(rope_step, q, k)
        return self.attn(q, k, v)


class DecoderMLP(nn.Module):
    """SwiGLU; gate and up are one tensor on disk, as they are here."""

    def __init__(
        self,
        config,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.gate_up_proj = MergedColumnParallelLinear(
            config.hidden_size,
            [config.intermediate_size] * 2,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.gate_up_proj",
        )
        self.down_proj = RowParallelLinear(
            config.intermediate_size,
            config.hidden_size,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.down_proj",
        )
        self.act_fn = SiluAndMul()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate_up, _ = self.gate_up_proj(x)
        out, _ = self.down_proj(self.act_fn(gate_up))
        return out


class DecoderLayer(nn.Module):
    """Attention and MLP, each normed before and after; the additions are fused into norms."""

    def __init__(
        self,
        config,
        cache_config: CacheConfig | None = None,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.self_attn = DecoderAttention(
            config, cache_config, quant_config, prefix=f"{prefix}.self_attn"
        )
        self.mlp = DecoderMLP(config, quant_config, prefix=f"{prefix}.mlp")
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(size, eps=eps)
        self.post_self_attn_layernorm = RMSNorm(size, eps=eps)
        self.post_attention_layernorm = RMSNorm(size, eps=eps)
        self.post_mlp_layernorm = RMSNorm(size, eps=eps)
        # The only ones who take what these norms return, so a quantized layer may have it in int8.
        # In tuples, so that the norms are no modules of theirs.
        self.self_attn.qkv_proj.input_norms = (self.input_layernorm,)
        self.mlp.gate_up_proj.input_norms = (self.post_attention_layernorm,)
        self.saturates = False  # in float16, where it has to; see overflow.py

    def forward(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        rotary_emb: nn.Module,
        rope_step: tuple[torch.Tensor, ...],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x and residual [tokens, hidden_size]: what was computed last, and the sum before it."""
        x, residual = self.add_input(x, residual)
        x = self.self_attn(x, rotary_emb, rope_step)
        x, residual = self.add_attention(x, residual)
        x = self.post_mlp_layernorm(self.mlp(x))
        return x, residual

    def add_input(
        self, x: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What attention takes, and the sum so far."""
        if residual is None:
            return self.input_layernorm(x), x
        return self.input_layernorm(*summands(x, residual, self.saturates))

    def add_attention(
        self, x: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the MLP takes, and the sum so far, with what attention gave."""
        x = self.post_self_attn_layernorm(x)
        return self.post_attention_layernorm(*summands(x, residual, self.saturates))


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
            if not config.tie_word_embeddings:
                look_up_only(self.embed_tokens)
        self.rotary_emb = text_rotary_embedding(
            config, vllm_config.model_config.dtype, vllm_config.model_config.max_model_len
        )
        self.start_layer, self.end_layer, self.layers = make_layers(
            config.num_hidden_layers,
            lambda prefix: DecoderLayer(
                config, vllm_config.cache_config, vllm_config.quant_config, prefix
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
        return islice(self.layers, self.start_layer, self.end_layer)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        """Hidden states [tokens, hidden_size] of the last stage, or what the next stage needs."""
        x, residual = self.start(input_ids, intermediate_tensors, inputs_embeds)
        rope_step = self.rotary_emb.step(positions)
        for layer in self.stage_layers:
            x, residual = layer(x, residual, self.rotary_emb, rope_step)
        return self.end(x, residual)

    def start(
        self,
        input_ids: torch.Tensor | None,
        intermediate_tensors: IntermediateTensors | None,
        inputs_embeds: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x and residual of this stage's first layer."""
        if not get_pp_group().is_first_rank:
            assert intermediate_tensors is not None
            return intermediate_tensors["hidden_states"], intermediate_tensors["residual"]
        if inputs_embeds is not None:
            return inputs_embeds, None
        assert input_ids is not None
        return self.embed_input_ids(input_ids), None

    def end(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor | IntermediateTensors:
        """What forward returns, of the x and residual that the last layer gave."""
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({"hidden_states": x, "residual": residual})
        saturates = self.layers[self.end_layer - 1].saturates
        x, _ = self.norm(*summands(x, residual, saturates))
        return x
