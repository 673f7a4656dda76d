# SPDX-License-Identifier: Apache-2.0
"""Refusals of bad media, and the one exception for them that vLLM's server answers well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vllm.exceptions import VLLMValidationError


class MediaRefused(ValueError):
    """A file was not loaded; the message tells the caller why, and what to do."""


def check_size(size: int, limit: int) -> None:
    """Raise MediaRefused if a file has more bytes than the limit."""
    if size > limit:
        raise MediaRefused(
            f"The file is larger than {limit >> 20} MiB, the most that this server loads. Send a "
            "smaller one."
        )


@contextmanager
def callers_error() -> Iterator[None]:
    """Raise every ValueError as vLLM's own kind, VLLMValidationError, with the same message.

    vLLM 0.23.0 answers both with 400. After any other it also closes the connection, so that a
    client that keeps it open fails with its next request, and writes a traceback into the log. Can
    go when `vllm.entrypoints.openai.api_server` has a handler for ValueError.
    """
    try:
        yield
    except VLLMValidationError:
        raise
    except ValueError as error:
        raise VLLMValidationError(str(error)) from error
