# SPDX-License-Identifier: Apache-2.0
"""The emulated NPU in this process, for tests that start no engine."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def emulated() -> None:
    from npu_emulator import emulator

    emulator.install()
