# SPDX-License-Identifier: Apache-2.0
"""Media by file and data URL: only what the operator shares, and only what is a file."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from tests.processing.loading import load, png
from vllm_glm41v_npu.processing.refusals import MediaRefused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a picture in it, one beside it, and one in a folder whose name begins like its own."""
    inside, other = tmp_path / "media", tmp_path / "media-other"
    (inside / "deep").mkdir(parents=True)
    other.mkdir()
    for path in (tmp_path / "outside.png", other / "a.png", inside / "a b.png"):
        path.write_bytes(png())
    (inside / "deep" / "c.png").write_bytes(png())
    return inside


def test_files_inside(folder: Path) -> None:
    (folder / "link.png").symlink_to(folder / "a b.png")
    (folder.parent / "name").symlink_to(folder)
    for path in (folder / "a b.png", folder / "deep" / "c.png", folder / "link.png"):
        assert load(path.as_uri(), folder=str(folder)).size == (8, 8)
    assert load(f"file://localhost{folder}/deep/../deep/c.png", folder=str(folder)).size == (8, 8)
    assert load((folder / "a b.png").as_uri(), folder=str(folder.parent / "name")).size == (8, 8)


def test_files_outside(folder: Path) -> None:
    """As if they were not there: a caller cannot find out which files there are."""
    outside = folder.parent / "outside.png"
    assert load(f"file://{folder}-other/a.png", folder=f"{folder}-other").size == (8, 8)
    (folder / "link.png").symlink_to(outside)
    (folder / "up").symlink_to(folder.parent)
    (folder / "loop").symlink_to(folder / "loop")
    for path in (
        *(outside, f"{folder}/../outside.png", f"{folder}/%2e%2e/outside.png"),
        *(f"{folder}/link.png", f"{folder}/up/outside.png", f"{folder}/loop", f"{folder}/none.png"),
        *(f"{folder}-other/a.png", "/etc/passwd", f"{folder}/a%00.png"),
    ):
        with pytest.raises(MediaRefused, match="There is no file"):
            load(f"file://{path}", folder=str(folder))


def test_what_is_no_file(folder: Path) -> None:
    """Reading a pipe would wait for ever."""
    os.mkfifo(folder / "pipe")
    for path in (folder / "pipe", folder / "deep"):
        with pytest.raises(MediaRefused, match="is no file"):
            load(path.as_uri(), folder=str(folder))


def test_no_folder_is_allowed(folder: Path) -> None:
    with pytest.raises(MediaRefused, match="--allowed-local-media-path"):
        load((folder / "a b.png").as_uri())


@pytest.mark.parametrize(
    "url", ["data:", "data:image/png", "data:image/png,abc", "data:image/png;utf8,abc"]
)
def test_data_urls_without_base64(url: str) -> None:
    with pytest.raises(MediaRefused, match="not in base64"):
        load(url)


def test_a_data_url_with_parameters() -> None:
    encoded = base64.b64encode(png()).decode()
    assert load(f"data:image/png;name=a.png;base64,{encoded}").size == (8, 8)
    with pytest.raises(MediaRefused):
        load(f"data:image/png;base64,{encoded[:-5]}!")
