# SPDX-License-Identifier: Apache-2.0
"""Muon: momentum whose matrix updates are orthogonalised (Jordan et al., 2024), in float32.

torch.optim.Muon does the same in bfloat16, which an AVX2 core emulates many times slower.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

# Quintic Newton-Schulz coefficients of the method's authors.
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalise(update: torch.Tensor, rounds: int = 4) -> torch.Tensor:
    """Float32 [n, rows, columns], rows <= columns, to nearly orthonormal rows."""
    x = update / (update.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.transpose(1, 2)
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """For 2-D weights only; matrices of one shape are updated together."""

    def __init__(
        self,
        matrices: Iterable[torch.Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.02,
    ):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            shapes = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[tuple(p.shape)].append(p)
            for shape, matrices in shapes.items():
                self.update(group, shape, matrices)

    def update(self, group: dict, shape: tuple[int, ...], matrices: list[torch.Tensor]) -> None:
        steps = []
        for p in matrices:
            moving = self.state[p].setdefault("momentum", torch.zeros_like(p))
            moving.lerp_(p.grad, 1 - group["momentum"])
            steps.append(p.grad.lerp(moving, group["momentum"]))  # Nesterov
        stacked = torch.stack(steps)
        tall = shape[0] > shape[1]
        step = orthogonalise(stacked.transpose(1, 2) if tall else stacked)
        step = step.transpose(1, 2) if tall else step
        scale = 0.2 * max(shape) ** 0.5  # the root mean square of an Adam update
        for p, change in zip(matrices, step, strict=True):
            p.mul_(1 - group["lr"] * group["decay"]).add_(change, alpha=-group["lr"] * scale)
