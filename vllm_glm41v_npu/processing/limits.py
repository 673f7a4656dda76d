# SPDX-License-Identifier: Apache-2.0
"""Limits that environment variables set. Imports no torch or vLLM."""

from __future__ import annotations

import os
from typing import Literal

Kind = Literal["image", "video"]

MAX_FILE_MB: dict[Kind, tuple[str, int]] = {
    "image": ("VLLM_GLM41V_NPU_MAX_IMAGE_MB", 100),
    "video": ("VLLM_GLM41V_NPU_MAX_VIDEO_MB", 512),
}
"""Kind of medium to (environment variable of its largest file, default), in MiB."""


def max_file_bytes(kind: Kind) -> int:
    """Return the largest file of one kind of medium, in bytes.

    Raises:
        ValueError: The variable is set to something else than a positive number.
    """
    return mebibytes(*MAX_FILE_MB[kind])


def mebibytes(variable: str, default: int) -> int:
    """Return the bytes that an environment variable gives in MiB.

    Raises:
        ValueError: It is set to something else than a positive number.
    """
    return positive(variable, default, "MiB") << 20


def positive(variable: str, default: int, unit: str) -> int:
    """Return the whole number in an environment variable, or the default.

    Raises:
        ValueError: It is set to something else than a positive number.
    """
    value = os.environ.get(variable) or str(default)
    if not value.isdecimal() or int(value) == 0:
        raise ValueError(f"{variable} is {value!r}; expected {unit}, a whole number above 0.")
    return int(value)
