# SPDX-License-Identifier: Apache-2.0
"""CPU kernels of NPU operators, by operator name.

A kernel is a plain function over CPU tensors with the arguments of the operator's schema. Writing
one takes neither torch_npu nor the emulator; `register` puts them onto the CPU dispatch key, which
torch_npu leaves free, after comparing each signature with the live schema.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Kernel = TypeVar("Kernel", bound=Callable[..., Any])
KERNELS: dict[str, Callable[..., Any]] = {}
_libraries: dict[str, torch.library.Library] = {}


def kernel(*names: str) -> Callable[[Kernel], Kernel]:
    """Declare the CPU kernel of the operators called `names` ("npu::npu_swiglu", "npu::f.out")."""

    def declare(function: Kernel) -> Kernel:
        for name in names:
            assert name not in KERNELS, f"two kernels for {name}"
            KERNELS[name] = function
        return function

    return declare


def find_schema(name: str) -> Any:
    """The dispatcher's live schema of "namespace::operator.overload", or None."""
    base, _, overload = name.partition(".")
    schemas = torch._C._jit_get_schemas_for_operator(base)
    return next((schema for schema in schemas if schema.overload_name == overload), None)


def check_signature(name: str, function: Callable[..., Any]) -> None:
    """Raise TypeError unless `function` takes the arguments of the live schema of `name`."""
    schema = find_schema(name)
    if schema is None:
        raise TypeError(f"{name} has a kernel, and torch_npu has no such operator.")
    wanted = [argument.name for argument in schema.arguments]
    found = list(inspect.signature(function).parameters)
    # A schema may call an argument `self`; so does the kernel.
    if found != wanted:
        raise TypeError(f"The kernel of {name} takes {found}; its schema has {wanted}.")


def register() -> list[str]:
    """Put every kernel not yet registered onto the CPU key; returns the names.

    Operators that no library has defined yet are left for a later call.
    """
    done = []
    for name, function in KERNELS.items():
        if find_schema(name) is None or torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"):
            continue
        check_signature(name, function)
        namespace, base = name.split("::")
        if namespace not in _libraries:
            _libraries[namespace] = torch.library.Library(namespace, "IMPL")
        _libraries[namespace].impl(base, function, "CPU")
        done.append(name)
    return done
