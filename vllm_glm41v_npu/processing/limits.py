# SPDX-License-Identifier: Apache-2.0
"""Limits by environment variables."""

from __future__ import annotations

import os


def mebibytes(variable: str, default: int) -> int:
    """Bytes, by an environment variable in MiB.

    Raises:
        ValueError: It is set to something else than a positive number.
    """
    return positive(variable, default, "MiB") << 20


def positive(variable: str, default: int, unit: str) -> int:
    """The whole number in an environment variable, or the default.

    Raises:
        ValueError: It is set to something else than a positive number.
    """
    value = os.environ.get(variable) or str(default)
    if not value.isdecimal() or int(value) == 0:
        raise ValueError(f"{variable} is {value!r}; expected {unit}, a whole number above 0.")
    return int(value)
