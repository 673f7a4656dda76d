# SPDX-License-Identifier: Apache-2.0
"""Problems of a checkpoint, in one form for whoever starts it and for `glm41v doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    name: what was looked at, in the doctor's report.
    found: what was found.
    advice: what to do, in whole sentences.
    fatal: vLLM would not start, or would compute something else.
    """

    name: str
    found: str
    advice: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.found}. {self.advice}"
