# SPDX-License-Identifier: Apache-2.0
"""The vision tower: patches of pictures and videos in, one embedding per merged token out.

It has a linear patch embedding, a bicubically resized position table, blocks with two-axis rope and
attention within each frame, a 2 x 2 downsampling, and a gated merger into the decoder's width. From
small to large: attention, block, patch embedding, merger, tower.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from vllm.distributed import divide, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import MMEncoderAttention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.models.vision import is_vit_use_data_parallel

from vllm_glm41v_npu.models.mlp import SwiGLU
from vllm_glm41v_npu.models.position_embedding import VisionEmbeddings
from vllm_glm41v_npu.models.rope import PatchRotation, vision_rotary_embedding

PIXEL_OFFSET = 128
"""Number subtracted from a uint8 pixel before the patch embedding; exact in every dtype."""


class VisionAttention(nn.Module):
    """Bidirectional attention of each frame with itself."""

    def __init__(
        self,
        config,
        rotary_emb: nn.Module,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        data_parallel = is_vit_use_data_parallel()
        tp_size = 1 if data_parallel else get_tensor_model_parallel_world_size()
        self.num_heads = divide(config.num_heads, tp_size)
        self.head_dim = divide(config.hidden_size, config.num_heads)
        self.qkv = QKVParallelLinear(
            hidden_size=config.hidden_size,
            head_size=self.head_dim,
            total_num_heads=config.num_heads,
            bias=config.attention_bias,
            quant_config=quant_config,
            prefix=f"{prefix}.qkv",
            disable_tp=data_parallel,
        )
        self.proj = RowParallelLinear(
            config.hidden_size,
            config.hidden_size,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.proj",
            disable_tp=data_parallel,
        )
        self.attn = MMEncoderAttention(
            num_heads=self.num_heads,
            head_size=self.head_dim,
            scale=self.head_dim**-0.5,
            prefix=f"{prefix}.attn",
        )
        self.rotary_emb = rotary_emb  # one for all blocks

    def forward(
        self, x: torch.Tensor, rotation: PatchRotation, cu_seqlens: torch.Tensor
    ) -> torch.Tensor:
        """Attend within each frame: [patches, hidden_size] to the same shape.

        Args:
            x: One frame after another.
            rotation: Cos and sin of each patch.
            cu_seqlens: int32 [frames + 1], on the host: the patch at which each frame begins, and
                the end of the last one.
        """
        qkv, _ = self.qkv(x)
        qkv = qkv.view(1, x.shape[0], 3 * self.num_heads, self.head_dim)  # [1, N, 3 H, D]
        qk, v = qkv.split([2 * self.num_heads, self.num_heads], dim=2)
        q, k = self.rotary_emb(rotation, qk)  # [1, N, H, D] each
        x = self.attn(query=q, key=k, value=v, cu_seqlens=cu_seqlens)
        out, _ = self.proj(x.reshape(qkv.shape[1], -1))
        return out


class VisionBlock(nn.Module):
    """Pre-norm attention and MLP; additions are fused into the norm that follows them."""

    def __init__(
        self,
        config,
        rotary_emb: nn.Module,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.norm2 = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attn = VisionAttention(config, rotary_emb, quant_config, prefix=f"{prefix}.attn")
        self.mlp = SwiGLU(
            config.hidden_size,
            config.out_hidden_size,  # the decoder's width, and not config.intermediate_size
            quant_config,
            prefix=f"{prefix}.mlp",
            disable_tp=is_vit_use_data_parallel(),
        )

    def forward(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        rotation: PatchRotation,
        cu_seqlens: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run a block on x and residual [patches, hidden_size]: the last output, the sum before it.

        Returns both for the next block; a residual of None stands for none yet.
        """
        if residual is None:
            x, residual = self.norm1(x), x
        else:
            x, residual = self.norm1(x, residual)
        x = self.attn(x, rotation, cu_seqlens)
        x, residual = self.norm2(x, residual)
        return self.mlp(x), residual


class PatchEmbed(nn.Module):
    """Patch embedding: one matrix product per patch and frame, on raw pixels.

    `fold_patch_embed` folds the rescaling by 1/255, the mean and the standard deviation into the
    weights and the bias. `proj` takes the first frame as if both were equal, as in a still picture;
    `motion` takes the difference between the second frame of a video and the first.
    """

    def __init__(self, config, prefix: str = "") -> None:
        super().__init__()
        self.proj = ReplicatedLinear(
            config.in_channels * config.patch_size**2,
            config.hidden_size,
            bias=True,
            prefix=f"{prefix}.proj",
        )
        self.motion = ReplicatedLinear(
            self.proj.input_size, config.hidden_size, bias=False, prefix=f"{prefix}.motion"
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed patches; returns [patches, hidden_size].

        Args:
            pixels: uint8 [patches, patch_size^2 * in_channels] for pictures. For videos twice as
                wide: the first frame, then the second.
        """
        pixels = pixels.to(self.proj.weight.dtype)
        first, second = pixels[:, : self.proj.input_size], pixels[:, self.proj.input_size :]
        out, _ = self.proj(first - PIXEL_OFFSET)
        if second.shape[1] == 0:
            return out
        change, _ = self.motion(second - first)
        return out + change


class PatchMerger(SwiGLU):
    """Merger: projection, LayerNorm and GELU, then SwiGLU, in the decoder's width."""

    def __init__(
        self,
        config,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        width, data_parallel = config.out_hidden_size, is_vit_use_data_parallel()
        super().__init__(width, config.intermediate_size, quant_config, prefix, data_parallel)
        self.proj = ColumnParallelLinear(
            width,
            width,
            bias=False,
            gather_output=True,
            quant_config=quant_config,
            prefix=f"{prefix}.proj",
            disable_tp=data_parallel,
        )
        self.post_projection_norm = nn.LayerNorm(width)
        self.act1 = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.proj(x)
        return super().forward(self.act1(self.post_projection_norm(x)))


class VisionTransformer(nn.Module):
    """The vision tower; `config` is the checkpoint's vision config."""

    def __init__(
        self,
        config,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.spatial_merge_size = config.spatial_merge_size
        self.out_hidden_size = config.out_hidden_size
        self.patch_embed = PatchEmbed(config, prefix=f"{prefix}.patch_embed")
        self.post_conv_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.embeddings = VisionEmbeddings(
            config.image_size // config.patch_size, config.hidden_size, config.spatial_merge_size
        )
        self.rotary_emb = vision_rotary_embedding(
            config.hidden_size // config.num_heads, config.spatial_merge_size
        )
        self.blocks = nn.ModuleList(
            VisionBlock(config, self.rotary_emb, quant_config, prefix=f"{prefix}.blocks.{index}")
            for index in range(config.depth)
        )
        self.post_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        # A convolution whose stride is its kernel size: one matrix product for each merged token.
        self.downsample = ReplicatedLinear(
            config.hidden_size * config.spatial_merge_size**2,
            config.out_hidden_size,
            bias=True,
            prefix=f"{prefix}.downsample",
        )
        self.merger = PatchMerger(config, quant_config, prefix=f"{prefix}.merger")

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_embed.proj.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.patch_embed.proj.weight.device

    def forward(
        self, pixel_values: torch.Tensor, grid_thw: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Encode a batch of pictures, or of videos, of any sizes.

        Args:
            pixel_values: uint8, see `PatchEmbed.forward`: one picture or video after another, each
                pair of frames in the order of `merge_order`.
            grid_thw: Pairs of frames (1 for a picture), rows and columns of patches of each.

        Returns:
            [patches / merge^2, out_hidden_size].
        """
        grids = [list(grid) for grid in grid_thw]
        return self.encode(pixel_values.to(self.device), *self.prepare(grids))

    def prepare(self, grids: list[list[int]]) -> tuple[torch.Tensor, PatchRotation, torch.Tensor]:
        """Return what `encode` needs beside the pixels, made from `grids` alone.

        Returns:
            Position embeddings [patches, hidden_size], the rotation, and `cu_seqlens`, int32
            [frames + 1] on the host.
        """
        lengths = torch.tensor([0] + [h * w for t, h, w in grids for _ in range(t)], device="cpu")
        # Ascend's attention reads it on the host, so that no block has to fetch it.
        cu_seqlens = lengths.cumsum(0, dtype=torch.int32)
        rotation = self.rotary_emb.rotation(grids, self.dtype, self.device)
        return self.embeddings(grids), rotation, cu_seqlens

    def encode(
        self,
        pixels: torch.Tensor,
        positions: torch.Tensor,
        rotation: PatchRotation,
        cu_seqlens: torch.Tensor,
    ) -> torch.Tensor:
        """Run the tower on uint8 pixels of its device and what `prepare` returned.

        Returns [patches / merge^2, out_hidden_size].
        """
        x = self.post_conv_layernorm(self.patch_embed(pixels)) + positions
        residual = None
        for block in self.blocks:
            x, residual = block(x, residual, rotation, cu_seqlens)
        x, _ = self.post_layernorm(x, residual)

        # [patches, C] -> [patches / m^2, m^2 C]
        x, _ = self.downsample(x.view(x.shape[0] // self.spatial_merge_size**2, -1))
        return self.merger(x)
