# SPDX-License-Identifier: Apache-2.0
"""The rotary embeddings of rope.py on Ascend's kernels, in classes that its runners accept.

Imported on Ascend alone. Sources: op-plugin's documents of `npu_mrope` and
`npu_apply_rotary_pos_emb`.
"""

from __future__ import annotations

import torch
import torch_npu
from torch import nn
from vllm_ascend._310p.ops.rotary_embedding import AscendMRotaryEmbedding310

from vllm_glm41v_npu.models.rope import (
    TextRotaryEmbedding,
    head_size,
    vision_angles,
    whole_head_frequencies,
)


class A2TextRotaryEmbedding(TextRotaryEmbedding):
    """The decoder's rope through `npu_mrope`, one call a layer.

    The three axes are merged already, so the kernel gets the merged rows as its cache, and each
    token's row number as its one position. vllm-ascend's own class calls it for the section
    [16, 24, 24] alone, and computes any other in plain PyTorch in every layer.
    """

    def forward(
        self, step: tuple[torch.Tensor, ...], q: torch.Tensor, k: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate q [tokens, heads * head_dim] and k [tokens, kv_heads * head_dim]."""
        index, rows = step
        return torch_npu.npu_mrope(
            index,
            q.contiguous(),
            k.contiguous(),
            rows,
            self.head_dim,
            mrope_section=[0, 0, 0],  # one axis
            rotary_mode="half",
        )


class Atlas310PTextRotaryEmbedding(AscendMRotaryEmbedding310):
    """The decoder's rope through `npu_apply_rotary_pos_emb`, one call a layer.

    NPUModelRunner310 looks for an instance of its own class, merges the axes of a step's rows once
    from that instance's `cos_sin_cache` and `mrope_section`, and keeps them where graphs see them.
    """

    def __init__(self, config, dtype: torch.dtype, max_positions: int) -> None:
        head_dim = head_size(config)
        section = list(config.rope_parameters["mrope_section"])
        if len(section) != 3:
            raise ValueError(
                f"config.json's mrope_section is {section}; on this chip vllm-ascend merges three "
                "parts, one for each axis."
            )
        section[-1] += head_dim // 2 - sum(section)  # frequency zero, on any axis
        self.frequencies, self.factors = whole_head_frequencies(config)
        self.max_positions = max_positions
        super().__init__(
            head_size=head_dim,
            rotary_dim=head_dim,
            max_position_embeddings=max_positions,
            base=0,  # unused: the frequencies are given
            is_neox_style=True,
            dtype=dtype,
            mrope_section=section,
        )

    def _compute_cos_sin_cache(self) -> torch.Tensor:
        """float32 [max_positions, head_dim]: first the cosines, then the sines."""
        angles = (
            torch.arange(self.max_positions, device=self.frequencies.device).float()[:, None]
            * self.frequencies
        )
        return torch.cat((angles.cos(), angles.sin()), dim=-1) * self.factors.repeat(2)

    def step(self, positions: torch.Tensor) -> tuple[torch.Tensor]:
        return (positions,)

    def forward(
        self, step: tuple[torch.Tensor, ...], q: torch.Tensor, k: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate q [tokens, heads * head_dim] and k [tokens, kv_heads * head_dim]."""
        return self.forward_oot(*step, q, k)


class AscendVisionRotaryEmbedding(nn.Module):
    """The vision tower's rope through `npu_apply_rotary_pos_emb`, which both chips document."""

    def __init__(self, head_dim: int, merge: int) -> None:
        super().__init__()
        self.head_dim, self.merge = head_dim, merge

    def step(
        self, grid_thw: list[list[int]], dtype: torch.dtype, device: torch.device
    ) -> tuple[torch.Tensor, ...]:
        """Cosines and sines [patches, 1, head_dim] of a batch of pictures, in one copy."""
        angles = vision_angles(grid_thw, self.head_dim, self.merge).repeat(1, 2)
        both = torch.stack((angles.cos(), angles.sin())).to(dtype)  # [2, patches, head_dim]
        return both.to(device)[:, :, None].unbind()

    def forward(
        self, step: tuple[torch.Tensor, ...], qk: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated q and k [1, patches, heads, head_dim] of qk [1, patches, 2 * heads, head_dim]."""
        q, k = (part.contiguous() for part in qk.chunk(2, dim=2))
        cos, sin = (part[None] for part in step)  # [1, patches, 1, head_dim]
        return torch_npu.npu_apply_rotary_pos_emb(q, k, cos, sin, layout="BSND", rotary_mode="half")
