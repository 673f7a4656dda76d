# SPDX-License-Identifier: Apache-2.0
"""Conditions on several arguments, which many rows share; one left out breaks none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from npu_emulator.chips.rules import Operator, Rule, dtype_name

Arguments = Mapping[str, Any]

SCALAR_TYPES = {0: "uint8", 1: "int8", 3: "int32", 4: "int64", 5: "float16", 6: "float32"} | {
    12: "qint8",
    13: "quint8",
    15: "bfloat16",
}
"""torch's numbers of the dtypes that operators take as an integer."""
FRACTAL_NZ = 29
"""CANN's number of the memory format."""


def dtype_of(arguments: Arguments, name: str) -> str | None:
    """Name of a tensor argument's dtype; None without that tensor."""
    value = arguments.get(name)
    return dtype_name(value) if isinstance(value, torch.Tensor) else None


def shape_of(arguments: Arguments, name: str) -> tuple[int, ...]:
    """A tensor argument's shape; empty without that tensor."""
    value = arguments.get(name)
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def scalar_type(value: Any) -> str | None:
    """Name of a dtype that comes as torch's number of it or as itself."""
    if value is None or isinstance(value, torch.dtype):
        return None if value is None else str(value).removeprefix("torch.")
    return SCALAR_TYPES.get(int(value), f"number {value}")


def same_dtype(first: str, *others: str) -> Rule:
    """`others` have the dtype of `first`."""

    def holds(arguments: Arguments) -> bool:
        return {dtype_of(arguments, name) for name in (first, *others)} - {None} == {
            dtype_of(arguments, first)
        }

    return Rule(others[0], f"of the dtype of {first}, as all of {', '.join(others)}", holds)


def same_shape(first: str, *others: str) -> Rule:
    """`others` have the shape of `first`."""

    def holds(arguments: Arguments) -> bool:
        wanted = shape_of(arguments, first)
        found = [shape_of(arguments, name) for name in others if arguments.get(name) is not None]
        return all(shape == wanted for shape in found)

    return Rule(others[0], f"of the shape of {first}, as all of {', '.join(others)}", holds)


def last_dimensions(argument: str, *sizes: int) -> Rule:
    """The trailing dimensions of `argument` are `sizes`."""

    def holds(arguments: Arguments) -> bool:
        shape = shape_of(arguments, argument)
        return not shape or shape[-len(sizes) :] == sizes

    return Rule(argument, f"of trailing dimensions {sizes}", holds)


def absent(document: str, why: str, names: Iterable[str]) -> dict[str, Operator]:
    """Rows of operators that a chip does not have."""
    return {name: Operator(document, absent=why) for name in names}


def when(condition: Callable[[Arguments], bool], rule: Rule) -> Rule:
    """`rule`, wherever `condition` holds."""
    return Rule(rule.argument, rule.says, lambda a: not condition(a) or rule.holds(a))
