# SPDX-License-Identifier: Apache-2.0
"""`glm41v report`: its new place. To be removed in the release after 0.2."""

from __future__ import annotations

import typer

from vllm_glm41v_npu.cli.terminal import fail

UNREAD = {"allow_extra_args": True, "ignore_unknown_options": True}


def report(context: typer.Context) -> None:
    """Moved: `python -m benchmarks.report`, in the project's repository."""
    given = " ".join(context.args)
    fail(
        "`glm41v report` is not part of the wheel any more, as the benchmarks never were. In a "
        f"clone of the repository run: python -m benchmarks.report {given}".rstrip()
    )
