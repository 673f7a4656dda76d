# SPDX-License-Identifier: Apache-2.0
"""The words in which a chip's table says what its operators take, and the check of one call.

A table maps operator names ("npu::npu_swiglu", "aten::add.Tensor") to `Operator`. A call is checked
against its row, and a call without a row is refused: the emulator knows only what was read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


class Refusal(RuntimeError):
    """What the chip would not run; names operator, argument, rule and document."""


@dataclass(frozen=True)
class Tensor:
    """What one tensor argument may be (every tensor of a list alike); None is always allowed.

    dtypes: names of torch dtypes.
    ranks: smallest and largest number of dimensions.
    last: sizes that the last dimension may have; empty for any.
    last_multiple_of: what the last dimension is a multiple of.
    tail_bytes: the last dimension is at least this many bytes.
    contiguous: has to be.
    host: lies in host memory (True), on the device (False), or on either (None).
    formats: names of memory formats ("ND", "FRACTAL_NZ"); empty for any.
    """

    dtypes: tuple[str, ...] = ()
    ranks: tuple[int, int] = (0, 8)
    last: tuple[int, ...] = ()
    last_multiple_of: int = 1
    tail_bytes: int = 0
    contiguous: bool = False
    host: bool | None = False
    formats: tuple[str, ...] = ()

    def broken(self, tensor: torch.Tensor, format_name: str) -> tuple[str, str] | None:
        """What `tensor` is and what it should be, or None where it is right."""
        dtype = dtype_name(tensor)
        last = tensor.shape[-1] if tensor.dim() else 1
        low, high = self.ranks
        checks = (
            (not self.dtypes or dtype in self.dtypes, dtype, f"one of {', '.join(self.dtypes)}"),
            (low <= tensor.dim() <= high, f"{tensor.dim()}-D", f"{low}-D to {high}-D"),
            (not self.last or last in self.last, f"last dimension {last}", f"one of {self.last}"),
            (
                last % self.last_multiple_of == 0,
                f"last dimension {last}",
                f"a multiple of {self.last_multiple_of}",
            ),
            (
                last * tensor.element_size() >= self.tail_bytes,
                f"last dimension of {last * tensor.element_size()} bytes",
                f"at least {self.tail_bytes} bytes",
            ),
            (not self.contiguous or tensor.is_contiguous(), "not contiguous", "contiguous"),
            (
                self.host in (None, is_host(tensor)),
                f"on {tensor.device.type}",
                "in host memory" if self.host else "on the device",
            ),
            (
                not self.formats or format_name in self.formats,
                f"in format {format_name}",
                f"in {' or '.join(self.formats)}",
            ),
        )
        return next(((found, wanted) for holds, found, wanted in checks if not holds), None)


@dataclass(frozen=True)
class Value:
    """The values that a scalar or string argument may have."""

    allowed: tuple[Any, ...]


@dataclass(frozen=True)
class Rule:
    """A condition on several arguments: `holds` gets them by name, defaults filled in.

    argument: the one that the refusal names.
    says: the rule as the document has it, in one sentence.
    """

    argument: str
    says: str
    holds: Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Operator:
    """One row: what the chip's document says of one operator.

    document: where it is said (repository: path, or a title), or "guess: ..." where nothing says.
    arguments: rules by argument name; tensors without a rule only have to be on the device, where
        those of a single number in host memory go with the call.
    rules: conditions on several arguments.
    dtypes: what every tensor argument without a rule of its own may be; empty for any.
    lacks: dtypes that no result of it has.
    absent: why the chip does not have it; empty where it does.
    """

    document: str
    arguments: Mapping[str, Tensor | Value] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    dtypes: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    absent: str = ""


Table = Mapping[str, Operator]


def check(
    chip: str,
    table: Table,
    name: str,
    arguments: Mapping[str, Any],
    format_of: Callable[[torch.Tensor], str] = lambda tensor: "ND",
) -> None:
    """Raise Refusal if the call breaks the chip's table.

    Args:
        chip: What the refusal calls it.
        table: The chip's rows.
        name: Operator with its overload: "aten::add.Tensor".
        arguments: By the names of the schema, defaults filled in; tensors as the caller has them.
        format_of: Name of a device tensor's memory format.
    """
    row = table.get(name)
    if row is None:
        raise Refusal(
            f"{name} has no row in the table of {chip}: read its document, and add what it says "
            "to npu_emulator/chips."
        )

    def refuse(argument: str, found: str, wanted: str) -> None:
        raise Refusal(
            f"{chip} refuses {name}: {argument} is {found}, and has to be {wanted} ({row.document})"
        )

    if row.absent:
        raise Refusal(f"{chip} has no {name}: {row.absent} ({row.document})")
    device: torch.device | None = None
    for argument, value in arguments.items():
        wanted = row.arguments.get(argument)
        if isinstance(wanted, Value):
            if isinstance(value, torch.Tensor) or value not in wanted.allowed:
                refuse(argument, describe(value), " or ".join(map(repr, wanted.allowed)))
            continue
        for tensor in tensors_of(value):
            if wanted is None and is_host(tensor) and tensor.dim() == 0:
                continue
            broken = (wanted or Tensor(row.dtypes)).broken(tensor, format_of(tensor))
            if broken:
                refuse(argument, *broken)
            if is_host(tensor) or (wanted and wanted.host is None):
                continue
            device = device or tensor.device
            if tensor.device != device:
                refuse(argument, f"on {tensor.device}", f"on {device} as the others")
    for rule in row.rules:
        if not rule.holds(arguments):
            refuse(rule.argument, describe(arguments.get(rule.argument)), rule.says)


def check_results(chip: str, table: Table, name: str, results: Any) -> None:
    """Raise Refusal if a result on the device has a dtype that the operator lacks on the chip."""
    row = table[name]
    for tensor in tensors_of(results):
        if dtype_name(tensor) in row.lacks and not is_host(tensor):
            raise Refusal(
                f"{chip} refuses {name}: its result is {describe(tensor)}, and has to be of "
                f"another dtype than {' or '.join(row.lacks)} ({row.document})"
            )


def is_host(tensor: torch.Tensor) -> bool:
    """Whether it lies in host memory."""
    return tensor.device.type == "cpu"


def dtype_name(tensor: torch.Tensor) -> str:
    """As tables have it: "float16"."""
    return str(tensor.dtype).removeprefix("torch.")


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors of an argument that is one, or a list of them, or a list of such lists."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in tensors_of(part)]
    return []


def describe(value: Any) -> str:
    """A call's argument in a few words."""
    if isinstance(value, torch.Tensor):
        return f"{dtype_name(value)} {list(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(describe, value))}]"
    return repr(value)
