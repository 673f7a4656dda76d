# SPDX-License-Identifier: Apache-2.0
"""The rotary embeddings of models/rope.py on Ascend's kernels, in classes that its runners accept.

Sources: op-plugin's documents of `npu_mrope` and `npu_apply_rotary_pos_emb`.
"""

from __future__ import annotations

import torch
import torch_npu
from torch import nn
from vllm_ascend._310p.ops.rotary_embedding import AscendMRotaryEmbedding310

from vllm_glm41v_npu.checkpoint.shapes import head_size
from vllm_glm41v_npu.models.rope import (
    PatchRotation,
    RotaryStep,
    TextRotaryEmbedding,
    vision_angles,
    whole_head_frequencies,
)


class A2TextRotaryEmbedding(TextRotaryEmbedding):
    """The decoder's rope through `npu_mrope`, one call a layer.

    The three axes are merged already: the kernel gets the merged rows as its cache, and the number
    of a token's row as its only position. vllm-ascend's own class calls the kernel only for the
    section [16, 24, 24], and computes any other in plain PyTorch in every layer.
    """

    def forward(
        self, step: RotaryStep, q: torch.Tensor, k: torch.Tensor
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

    NPUModelRunner310 looks for an instance of vllm-ascend's class. Once a step it merges the axes,
    by that instance's `cos_sin_cache` and `mrope_section`, into rows that captured graphs read.
    """

    def __init__(self, config, dtype: torch.dtype, max_positions: int) -> None:
        head_dim = head_size(config)
        section = list(config.rope_parameters["mrope_section"])
        if len(section) != 3:
            raise ValueError(
                f"config.json's mrope_section is {section}; on this chip vllm-ascend merges three "
                "parts, one for each axis."
            )
        section[-1] += head_dim // 2 - sum(section)  # frequency zero, so any axis will do
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
        """Return float32 [max_positions, head_dim]: first the cosines, then the sines."""
        angles = (
            torch.arange(self.max_positions, device=self.frequencies.device).float()[:, None]
            * self.frequencies
        )
        return torch.cat((angles.cos(), angles.sin()), dim=-1) * self.factors.repeat(2)

    def step(self, positions: torch.Tensor) -> RotaryStep:
        """Return the positions and the whole cache: the runner itself has merged the axes."""
        return RotaryStep(positions, self.cos_sin_cache)

    def forward(
        self, step: RotaryStep, q: torch.Tensor, k: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate q [tokens, heads * head_dim] and k [tokens, kv_heads * head_dim]."""
        return self.forward_oot(step.index, q, k)


class AscendVisionRotaryEmbedding(nn.Module):
    """The vision tower's rope through `npu_apply_rotary_pos_emb`, which both chips document."""

    def __init__(self, head_dim: int, merge: int) -> None:
        super().__init__()
        self.head_dim, self.merge = head_dim, merge

    def rotation(
        self, grid_thw: list[list[int]], dtype: torch.dtype, device: torch.device
    ) -> PatchRotation:
        """Return the rotation of a batch of pictures or videos, copied to the device at once."""
        angles = vision_angles(grid_thw, self.head_dim, self.merge).repeat(1, 2)
        both = torch.stack((angles.cos(), angles.sin())).to(dtype)  # [2, patches, head_dim]
        return PatchRotation(*both.to(device)[:, :, None].unbind())  # [patches, 1, head_dim] each

    def forward(
        self, rotation: PatchRotation, qk: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate qk [1, patches, 2 * heads, head_dim]: q and k [1, patches, heads, head_dim]."""
        q, k = (part.contiguous() for part in qk.chunk(2, dim=2))
        cos, sin = (part[None] for part in rotation)  # [1, patches, 1, head_dim]
        return torch_npu.npu_apply_rotary_pos_emb(q, k, cos, sin, layout="BSND", rotary_mode="half")
