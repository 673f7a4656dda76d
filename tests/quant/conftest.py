# SPDX-License-Identifier: Apache-2.0
"""Compressed shards that several files of tests look at."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session", params=[1, 2])
def made(request: pytest.FixtureRequest, tmp_path_factory) -> tuple[Path, int]:
    """Shards of msModelSlim's W8A8S checkpoint, and their number of ranks."""
    from tests.quant.compressing import compress
    from tests.quant.test_sharding import FIXTURE

    folder = tmp_path_factory.mktemp("made") / "shards"
    compress(FIXTURE, folder, "--tp", str(request.param))
    return folder, request.param


@pytest.fixture
def copied(made: tuple[Path, int], tmp_path: Path) -> tuple[Path, int]:
    """The same, to be damaged."""
    folder = tmp_path / "copied"
    shutil.copytree(made[0], folder)
    return folder, made[1]
