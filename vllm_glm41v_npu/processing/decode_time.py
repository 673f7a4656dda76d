# SPDX-License-Identifier: Apache-2.0
"""The time limit of decoding one video; it also ends a decoding that nobody waits for."""

from __future__ import annotations

from io import BytesIO
from time import monotonic

from vllm_glm41v_npu.processing.budget import RequestEnded, check_alive
from vllm_glm41v_npu.processing.limits import positive

SECONDS_VARIABLE, DEFAULT_SECONDS = "VLLM_GLM41V_NPU_MAX_VIDEO_SECONDS", 120


class TooMuchWork(ValueError):
    """A file takes longer to decode than it may; the message goes on from "was not decoded:"."""


class DecodeTime:
    """The time limit of one video, counted from when this object is made.

    Raises:
        ValueError: The environment variable is no number.
    """

    def __init__(self) -> None:
        self.most = positive(SECONDS_VARIABLE, DEFAULT_SECONDS, "seconds")
        self._end = monotonic() + self.most

    def check(self) -> None:
        """End a decoding that takes too long; called between its steps.

        Raises:
            TooMuchWork: The time is over.
            RequestEnded: As in `check_alive`.
        """
        check_alive()
        if monotonic() > self._end:
            raise TooMuchWork(
                f"it was not ready within {self.most} s. Send a shorter or smaller one; whoever "
                f"runs the server can set {SECONDS_VARIABLE}"
            )

    def is_over(self) -> bool:
        """Return True where `check` would raise."""
        try:
            self.check()
        except (TooMuchWork, RequestEnded):
            return True
        return False


class Source(BytesIO):
    """A file as FFmpeg reads it, which ends when the time is over.

    FFmpeg would print an exception, so the caller of FFmpeg checks again, and says why.
    """

    def __init__(self, data: bytes, limit: DecodeTime) -> None:
        super().__init__(data)
        self._limit = limit

    def read(self, size: int | None = -1, /) -> bytes:
        return b"" if self._limit.is_over() else super().read(size)
