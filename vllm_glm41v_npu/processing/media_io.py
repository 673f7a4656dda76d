# SPDX-License-Identifier: Apache-2.0
"""Loaders of media that say what decoding takes before they decode."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Generic, TypeVar

from vllm.multimodal.media.base import MediaIO

from vllm_glm41v_npu.processing.budget import Plan
from vllm_glm41v_npu.processing.fetching import decode_base64

T = TypeVar("T")


class PlannedIO(MediaIO[T], Generic[T]):
    """vLLM's interface for callers that do not wait (offline); `plan` for the connector."""

    @abstractmethod
    def plan(self, data: bytes) -> Plan[T]:
        """Read the header of a file, and nothing that takes memory by what the header says.

        Raises:
            ValueError: it is no such medium, or too large; a sentence for the caller.
        """

    def plan_base64(self, media_type: str, text: str) -> Plan[T]:
        """`plan` of what a data URL holds.

        Raises:
            ValueError: also if it is not base64.
        """
        return self.plan(decode_base64(text))

    def load_bytes(self, data: bytes) -> T:
        return self.plan(data).decode()

    def load_base64(self, media_type: str, data: str) -> T:
        return self.plan_base64(media_type, data).decode()

    def load_file(self, filepath: Path) -> T:
        return self.load_bytes(filepath.read_bytes())
