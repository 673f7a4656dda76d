# SPDX-License-Identifier: Apache-2.0
"""tools/check_dist.py refuses a release that is not sound; `make check-dist` runs all of it."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.doc_pages import ROOT
from tools import check_dist
from tools.check_dist import IN_SDIST, PACKAGE, STEM

METADATA = "Metadata-Version: 2.4\nName: vllm-glm41v-npu\nVersion: 0.1.0\n"


def write_wheel(
    folder: Path, *, without: str = "", also: str = "", metadata: str = METADATA
) -> Path:
    """A wheel of empty modules."""
    modules = [str(path.relative_to(ROOT)) for path in (ROOT / PACKAGE).rglob("*.py")]
    names = [*modules, f"{PACKAGE}/py.typed", f"{STEM}.dist-info/licenses/LICENSE"]
    path = folder / f"{STEM}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name in {*names, also} - {without, ""}:
            wheel.writestr(name, "")
        wheel.writestr(f"{STEM}.dist-info/METADATA", metadata)
    return path


def write_sdist(folder: Path, names: list[str]) -> Path:
    """A source archive of empty files."""
    path = folder / f"{STEM}.tar.gz"
    with tarfile.open(path, "w:gz") as sdist:
        for name in names:
            sdist.addfile(tarfile.TarInfo(f"{STEM}/{name}"), io.BytesIO())
    return path


def test_sound_files_pass(tmp_path: Path) -> None:
    """Guards the tests below against refusing everything."""
    check_dist.check_wheel(write_wheel(tmp_path))
    check_dist.check_sdist(write_sdist(tmp_path, [*IN_SDIST, f"{PACKAGE}/__init__.py"]))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"without": f"{PACKAGE}/plugin.py"}, r"differs from .*\['vllm_glm41v_npu/plugin.py'\]"),
        ({"also": "tests/conftest.py"}, r"differs from .*\['tests/conftest.py'\]"),
        ({"also": "npu_emulator/build.py"}, r"differs from .*\['npu_emulator/build.py'\]"),
        ({"without": f"{STEM}.dist-info/licenses/LICENSE"}, "has no LICENSE"),
    ],
)
def test_wheel_is_refused(tmp_path: Path, change: dict[str, str], sentence: str) -> None:
    """Guards against modules that are missing, test equipment in site-packages, and no licence."""
    with pytest.raises(check_dist.DistError, match=sentence):
        check_dist.check_wheel(write_wheel(tmp_path, **change))


def test_metadata_is_refused(tmp_path: Path) -> None:
    """Guards against an upload that an index turns down."""
    with pytest.raises(check_dist.DistError, match="would refuse .*Requires-Dist|requires-dist"):
        check_dist.check_wheel(write_wheel(tmp_path, metadata=METADATA + "Requires-Dist: a b\n"))


def test_sdist_is_refused(tmp_path: Path) -> None:
    """Guards against an archive that no wheel is made from, and one with the tests."""
    with pytest.raises(check_dist.DistError, match="lacks LICENSE, vllm_glm41v_npu"):
        check_dist.check_sdist(write_sdist(tmp_path, [*IN_SDIST[1:]]))
    names = [*IN_SDIST, f"{PACKAGE}/__init__.py", "tests/conftest.py"]
    with pytest.raises(check_dist.DistError, match="holds tests"):
        check_dist.check_sdist(write_sdist(tmp_path, names))
