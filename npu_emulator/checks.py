# SPDX-License-Identifier: Apache-2.0
"""The checks that boxed.cpp asks for at each call whose signature it has not seen before."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from .chips.rules import Refusal, Table, check, describe
from .kernels.registry import find_schema

# What the dispatcher has a Meta kernel for, and torch_npu wrote it.
OWN = ("npu::", "atb::", "_C_ascend::")
NZ_FORMAT = 29
FORMATS = {2: "ND", 29: "FRACTAL_NZ"}


@cache
def argument_names(name: str) -> list[str]:
    return [argument.name for argument in find_schema(name).arguments]


class Checker:
    """Holds a chip's table against the calls of one process."""

    def __init__(self, chip: str, table: Table) -> None:
        self.chip = chip
        self.table = table
        self.examples: dict[str, list[str]] = {}
        self.refused: list[str] = []

    def call(self, name: str, values: tuple[Any, ...]) -> None:
        """Before the kernel runs: raise Refusal if the chip would not run it."""
        arguments = dict(zip(argument_names(name), values, strict=True))
        self.examples.setdefault(name, []).append(
            ", ".join(f"{key}={describe(value)}" for key, value in arguments.items())
        )
        try:
            check(self.chip, self.table, name, arguments, format_of)
        except Refusal as refusal:
            self.refused.append(str(refusal))
            raise

    def result(self, name: str, values: tuple[Any, ...], results: tuple[Any, ...]) -> None:
        """After the kernel ran: raise Refusal if torch_npu's Meta kernel promises otherwise."""
        if not name.startswith(OWN) or not _has_meta(name):
            return
        base, _, overload = name.partition(".")
        namespace, operator = base.split("::")
        call = getattr(getattr(torch.ops, namespace), operator)
        call = getattr(call, overload or "default")
        schema = find_schema(name)
        arguments = [_on_meta(value) for value in values]
        positional = [
            a for a, s in zip(arguments, schema.arguments, strict=True) if not s.kwarg_only
        ]
        named = {
            s.name: a for a, s in zip(arguments, schema.arguments, strict=True) if s.kwarg_only
        }
        promised = call(*positional, **named)
        promised = promised if isinstance(promised, tuple | list) else (promised,)
        for index, (want, got) in enumerate(zip(promised, results, strict=True)):
            if isinstance(want, torch.Tensor) and want.numel() and not _alike(want, got):
                refusal = (
                    f"The kernel of {name} returned {describe(got)} as result {index}, and "
                    f"torch_npu's Meta kernel says {describe(want)}."
                )
                self.refused.append(refusal)
                raise Refusal(refusal)


def format_of(tensor: torch.Tensor) -> str:
    """Name of a device tensor's memory format, as torch_npu keeps it."""
    if tensor.device.type != "npu":
        return "ND"
    import torch_npu

    number = int(torch_npu.get_npu_format(tensor))
    return FORMATS.get(number, str(number))


@cache
def _has_meta(name: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, "Meta")


def _on_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, list):
        return [_on_meta(part) for part in value]
    return value


def _alike(want: torch.Tensor, got: torch.Tensor) -> bool:
    return want.dtype == got.dtype and want.shape == got.shape
