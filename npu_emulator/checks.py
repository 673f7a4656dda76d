# SPDX-License-Identifier: Apache-2.0
"""The checks that boxed.cpp asks for at each call until one of its signature has passed them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NoReturn

import torch

from npu_emulator.chips.rules import Refusal, Table, check, check_results, describe
from npu_emulator.kernels.registry import find_schema

OWN = ("npu::", "atb::", "_C_ascend::")
"""Operators of torch_npu and vllm-ascend, which no kernel of torch computes."""
FORMATS = {2: "ND", 29: "FRACTAL_NZ"}
KEPT_EXAMPLES = 3


@cache
def argument_names(name: str) -> list[str]:
    return [argument.name for argument in find_schema(name).arguments]


class Checker:
    """Holds a chip's table against the calls of one process.

    Attributes:
        examples: The first calls of each operator, in words.
        refused: What was refused, in sentences.
        on_refusal: Is called after each of them, before its exception.
    """

    def __init__(self, chip: str, table: Table) -> None:
        self.chip = chip
        self.table = table
        self.examples: dict[str, list[str]] = {}
        self.refused: list[str] = []
        self.on_refusal: Callable[[], None] = lambda: None

    def call(self, name: str, values: tuple[Any, ...]) -> None:
        """Before the kernel runs: raise Refusal if the chip would not run it, or nothing here."""
        arguments = dict(zip(argument_names(name), values, strict=True))
        examples = self.examples.setdefault(name, [])
        if len(examples) < KEPT_EXAMPLES:
            described = (f"{key}={describe(value)}" for key, value in arguments.items())
            examples.append(", ".join(described))
        try:
            check(self.chip, self.table, name, arguments, format_of)
        except Refusal as refusal:
            self._refuse(str(refusal))
        if name.startswith(OWN) and not _has_kernel(name, "CPU"):
            self._refuse(f"{name} has no kernel here: write one in npu_emulator/kernels.")

    def result(self, name: str, values: tuple[Any, ...], results: tuple[Any, ...]) -> None:
        """After the kernel ran: raise Refusal if the chip or the Meta kernel says otherwise."""
        try:
            check_results(self.chip, self.table, name, results)
        except Refusal as refusal:
            self._refuse(str(refusal))
        if not name.startswith(OWN) or not _has_kernel(name, "Meta"):
            return
        try:
            promised = _call_meta(name, values)
        except Exception as error:
            self._refuse(f"The Meta kernel of {name} refuses its arguments: {error}")
        pairs = zip(_tensors(promised), _tensors(results), strict=True)
        for index, (want, got) in enumerate(pairs):
            if not _alike(want, got):
                self._refuse(
                    f"The kernel of {name} returned {describe(got)} as result {index}, and its "
                    f"Meta kernel says {describe(want)}."
                )

    def _refuse(self, sentence: str) -> NoReturn:
        self.refused.append(sentence)
        self.on_refusal()
        raise Refusal(sentence) from None


def format_of(tensor: torch.Tensor) -> str:
    """Name of a device tensor's memory format, as torch_npu keeps it."""
    if tensor.device.type != "npu":
        return "ND"
    import torch_npu

    number = int(torch_npu.get_npu_format(tensor))
    return FORMATS.get(number, str(number))


@cache
def _has_kernel(name: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, key)


def _call_meta(name: str, values: tuple[Any, ...]) -> Any:
    """What the Meta kernel returns for tensors like those of `values`."""
    base, _, overload = name.partition(".")
    namespace, operator = base.split("::")
    call = getattr(getattr(getattr(torch.ops, namespace), operator), overload or "default")
    arguments = list(zip(find_schema(name).arguments, map(_on_meta, values), strict=True))
    positional = [value for argument, value in arguments if not argument.kwarg_only]
    named = {argument.name: value for argument, value in arguments if argument.kwarg_only}
    return call(*positional, **named)


def _on_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, list):
        return [_on_meta(part) for part in value]
    return value


def _tensors(results: Any) -> Iterator[torch.Tensor]:
    """The tensors among results, in order, those in lists too."""
    if isinstance(results, torch.Tensor):
        yield results
    elif isinstance(results, (list, tuple)):
        for part in results:
            yield from _tensors(part)


def _alike(want: torch.Tensor, got: torch.Tensor) -> bool:
    return want.dtype == got.dtype and want.shape == got.shape
