# SPDX-License-Identifier: Apache-2.0
"""The list of planted bugs fits the code, and the tool that plants them tells what becomes of them.

That the tests find the bugs is what `python tools/mutate.py` shows, which takes an hour.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tools import mutate

ROOT = mutate.ROOT
BUGS = mutate.read_list()
LEAST = 80
LEAST_IN_A_ROOM = 3


def room(file: str) -> str:
    """The folder below the package; the package itself for its own files."""
    parts = Path(file).parts
    return "/".join(parts[:2]) if len(parts) > 2 and parts[0] == "vllm_glm41v_npu" else parts[0]


def rooms() -> set[str]:
    """Every folder of the package that holds code, the package itself, and the emulator."""
    package = ROOT / "vllm_glm41v_npu"
    inner = {room(str(file.relative_to(ROOT))) for file in package.glob("*/[a-z]*.py")}
    return inner | {package.name, "npu_emulator"}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_each_bug_fits_the_code(bug):
    """Guards against entries that rot: text that has changed, and tests that have moved."""
    assert bug.lane in mutate.LANES
    assert bug.name.endswith(".") and bug.old != bug.new
    bug.plant((ROOT / bug.file).read_text())
    files = [test.partition("::")[0] for test in bug.tests if test.startswith("tests/")]
    assert files, "no test is named"
    assert all((ROOT / file).exists() for file in files), files
    for test in bug.tests:
        file, _, name = test.partition("::")
        if name:
            assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(), test


def test_there_are_bugs_in_every_room():
    """Guards against a list that leaves a room out."""
    assert len(BUGS) >= LEAST
    assert len({bug.name for bug in BUGS}) == len(BUGS)
    counts = Counter(room(bug.file) for bug in BUGS)
    few = {name: counts[name] for name in sorted(rooms()) if counts[name] < LEAST_IN_A_ROOM}
    assert not few


TWICE = "def twice(number):\n    return 2 * number\n"
TESTS = """
import time

import pytest
from code_of_it import twice

def test_two():
    assert twice(2) == 4

def test_three():
    assert twice(3) == 7

@pytest.mark.skip
def test_four():
    assert twice(4) == 8

def test_long():
    time.sleep(twice(0))
"""
ENTRY = """
[[bug]]
name = "{name}"
file = "code_of_it.py"
old = "{old}"
new = "{new}"
tests = ["tests/test_it.py", "-k", "{chosen}"]
"""
CASES = [
    ("It adds.", "2 * number", "2 + number + 1", "two", mutate.KILLED),
    ("It squares.", "2 * number", "number * number", "two", mutate.LIVES),
    ("It cannot be read.", "return 2", "return (2", "two", mutate.KILLED),
    ("It is tested by a broken test.", "2 * number", "3", "three", mutate.BROKEN),
    ("It is tested by a skipped test.", "2 * number", "3", "four", mutate.NOT_RUN),
    ("It is not tested.", "2 * number", "3", "nothing", mutate.NOT_RUN),
    ("It never ends.", "2 * number", "2 * number + 1000", "long", mutate.KILLED),
]


def test_what_becomes_of_a_bug(tmp_path, monkeypatch, capsys):
    """Guards against bugs that count as killed by tests that never passed, or never ran; and
    against a change of the checkout itself."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tools").mkdir()
    (tmp_path / "code_of_it.py").write_text(TWICE)
    (tmp_path / "tests" / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = cpu\n")
    (tmp_path / "conftest.py").write_text(
        "import pytest\n\n"
        "def pytest_collection_modifyitems(items):\n"
        "    for item in items:\n"
        "        item.add_marker(pytest.mark.cpu)\n"
    )
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parent.parent)
    (tmp_path / "tools" / "mutations.toml").write_text(
        "".join(
            ENTRY.format(name=name, old=old, new=new, chosen=chosen)
            for name, old, new, chosen, _ in CASES
        )
    )
    for command in (["git", "init", "-q"], ["git", "add", "code_of_it.py", "conftest.py"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "tests", "tools", "pytest.ini"], cwd=tmp_path, check=True)
    monkeypatch.setattr(mutate, "SECONDS", 15)  # enough where two others compute
    before = set(os.listdir(tmp_path))
    assert mutate.main(["--jobs", "2"], tmp_path) == 1
    *rows, last = capsys.readouterr().out.splitlines()
    assert last == f"3 of {len(CASES)} killed"
    for name, *_, expected in CASES:
        last_said = [row for row in rows if name in row][-1]
        assert last_said.startswith(expected)
    assert mutate.main(["--only", "It adds"], tmp_path) == 0
    assert (tmp_path / "code_of_it.py").read_text() == TWICE
    assert set(os.listdir(tmp_path)) == before
