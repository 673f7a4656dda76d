# SPDX-License-Identifier: Apache-2.0
"""The workflow for public CI: it runs what .ci/run runs, and names what exists."""

from __future__ import annotations

import re

import yaml

from tools.build_env import ROOT

WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
(JOB,) = WORKFLOW["jobs"].values()
LANES = JOB["strategy"]["matrix"]["include"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
ENVIRONMENTS = {
    "env": {"cpu.lock", "dev.lock"},
    "env-ascend": {"cpu.lock", "dev.lock", "ascend.lock"},
    "env-suffix": {"cpu.lock", "dev.lock", "arctic.lock"},
    "env-page": {"page.lock"},
    "env-docs": {"docs.lock"},
}


def needed(target: str) -> set[str]:
    """The locks of the environments that a target builds, by itself or before it."""
    if target in ENVIRONMENTS:
        return ENVIRONMENTS[target]
    (before,) = re.findall(rf"^{target}:(.*?)(?:##|$)", (ROOT / "Makefile").read_text(), re.M)
    return set().union(*map(needed, before.split()))


def test_targets_exist_and_all_lanes_run() -> None:
    """Guards against a target that was renamed, and a lane that public CI leaves out."""
    named = {lane["make"] for lane in LANES}
    assert named <= TARGETS
    (lanes,) = re.findall(r"^lanes=\((.*)\)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert set(lanes.split()) <= named
    variables = [lane["variables"] for lane in LANES if lane["make"] == "test-ascend"]
    (chips,) = re.findall(r"^CHIPS \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert variables == [f"CHIPS={chip}" for chip in chips.split()]


def test_caches_follow_the_locks() -> None:
    """Guards against wheels of another lock file, and against wheels fetched each time."""
    for lane in LANES:
        locks = {path.removeprefix("requirements/") for path in lane["locks"].split()}
        assert locks == needed(lane["make"]), lane["name"]
    (cache,) = (step for step in JOB["steps"] if step.get("uses", "").startswith("actions/cache"))
    assert "steps.locks.outputs.hash" in cache["with"]["key"]
    assert cache["with"]["path"] == "~/.cache/vllm-glm41v-npu"
    assert WORKFLOW["env"]["CI"] == "true"  # what makes tools/build_env.py keep wheels there


def test_actions_are_pinned() -> None:
    """Guards against an action that changes by itself."""
    used = [step["uses"] for step in JOB["steps"] if "uses" in step]
    assert used
    assert [name for name in used if not re.fullmatch(r"[\w./-]+@v\d+\.\d+\.\d+", name)] == []
