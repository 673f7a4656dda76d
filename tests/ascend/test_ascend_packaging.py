# SPDX-License-Identifier: Apache-2.0
"""The environment of the Ascend lane, and this package's metadata beside vllm-ascend's."""

from __future__ import annotations

import sysconfig
from fnmatch import fnmatchcase
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_packaging import KNOWN_UNMET, pins, unmet
from tools.build_env import ENVIRONMENTS
from vllm_glm41v_npu.versions import STABLE

pytestmark = pytest.mark.ascend

ENVIRONMENT = ENVIRONMENTS["ascend"]
TORCHES = {"torch", "torchvision", "torchaudio", "torch-npu"}

# Of vllm-ascend's: tools to build it, and what CANN and features that are not used here import;
# vLLM 0.23.0 itself takes a newer fastapi. torch-npu names a build of torch that PyPI lacks.
NOT_NEEDED = {
    "arctic-inference",
    "cmake",
    "decorator",
    "fastapi",
    "memcache-hybrid",
    "memfabric-hybrid",
    "pandas-stubs",
    "pybind11",
    "quart",
    "setuptools-scm",
    "torchaudio",
    "triton-ascend",
    "wheel",
}


def locked() -> dict[str, str]:
    """Distribution to version, as the three lock files together say."""
    found = pins("cpu.lock") | pins("dev.lock") | pins("ascend.lock")
    assert set(ENVIRONMENT.pins()) <= set(found)
    return {name: found[name] for name in ENVIRONMENT.pins()}


def ours() -> list[Requirement]:
    """What `pip install '.[ascend]'` asks for."""
    required = [Requirement(text) for text in metadata.requires("vllm-glm41v-npu") or []]
    wanted = [r for r in required if not r.marker or r.marker.evaluate({"extra": "ascend"})]
    assert "vllm-ascend" in {requirement.name for requirement in wanted}
    return wanted


def theirs() -> dict[str, Requirement]:
    """What vllm-ascend asks for, by name."""
    required = [Requirement(text) for text in metadata.requires("vllm-ascend") or []]
    return {canonicalize_name(requirement.name): requirement for requirement in required}


def test_locks_are_what_is_installed():
    """Guards against an environment that tests other versions than the lock files say."""
    assert {name: metadata.version(name) for name in locked()} == locked()
    # Not all of sys.path: setuptools adds the distributions that it carries for itself.
    here = metadata.distributions(path=[sysconfig.get_path("purelib")])
    installed = {canonicalize_name(distribution.name) for distribution in here}
    own = {"vllm", "vllm-glm41v-npu", "npu-emulator", "pip"}
    assert installed == set(locked()) | own


def test_locks_are_complete():
    """Guards against a package that --no-deps leaves without what it imports."""
    left_out = ENVIRONMENT.left_out
    found = {
        (name, needed)
        for name, needed in unmet(locked() | {"pip": metadata.version("pip")})
        if not any(fnmatchcase(needed, pattern) for pattern in left_out)
    }
    ascend = {("vllm-ascend", name) for name in NOT_NEEDED}
    assert found == KNOWN_UNMET | ascend | {("torch-npu", "torch")}


def test_extra_agrees_with_vllm_ascend():
    """Guards against an install that no resolver can satisfy, or that changes what is there."""
    asked = theirs()
    for requirement in ours():
        name = canonicalize_name(requirement.name)
        assert requirement.specifier.contains(metadata.version(name)), requirement
        if name in asked:
            assert asked[name].specifier.contains(metadata.version(name)), asked[name]
    # A version of transformers that both name, and no other.
    (transformers,) = (r.specifier for r in ours() if r.name == "transformers")
    assert transformers == asked["transformers"].specifier


def test_extra_brings_no_second_torch():
    """Guards against a torch of ours over the one that vllm-ascend names."""
    assert not TORCHES & {canonicalize_name(requirement.name) for requirement in ours()}
    here = {name: theirs()[name].specifier for name in TORCHES - {"torchaudio"}}
    assert all(specifier.contains(metadata.version(name)) for name, specifier in here.items())


def test_extra_takes_the_tested_release_alone():
    """Guards against pip choosing a vllm-ascend that the plugin then refuses."""
    (release,) = (r.specifier for r in ours() if r.name == "vllm-ascend")
    tested = STABLE.vllm_ascend
    assert metadata.version("vllm-ascend") == tested
    major, minor, patch = (int(part) for part in tested.split("."))
    taken = [tested, f"{tested}.post1"]
    others = [
        f"{tested}rc1",
        f"{major}.{minor}.{patch + 1}",
        f"{major}.{minor - 1}.0",
        f"{major}.{minor + 1}.0rc1",
        f"{major}.{minor + 1}.0",
    ]
    assert [version for version in taken + others if release.contains(version)] == taken
