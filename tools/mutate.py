# SPDX-License-Identifier: Apache-2.0
"""Plant small bugs one by one, and see whether the tests find them.

    python tools/mutate.py [--only PATTERN] [--jobs N] [--json FILE]

The bugs are listed in tools/mutations.toml. Each is planted in a copy of the tracked files, where
the tests that it names are run: one has to fail with the bug, and has to pass without it.
The exit code is 1 where fewer than 95 % of the bugs are killed.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "tools" / "mutations.toml"
ENOUGH = 0.95
SECONDS = 300
"""Time limit of one run of tests; a run that the bug makes longer has found it."""

KILLED, LIVES, NOT_RUN, BROKEN = "killed", "lives", "no test ran", "fails without the bug"
NO_TESTS = 5  # pytest's exit code
_CLOSING = re.compile(r"\d+ (passed|failed|skipped|deselected|errors?)\b.* in [\d.]+s")
_FAILED = re.compile(r"(?:FAILED|ERROR) (tests/.+?)(?: - |$)")


@dataclass(frozen=True)
class Lane:
    """An environment in which tests run, and how pytest chooses those of the lane."""

    environment: str
    marker: str
    variables: dict[str, str] = field(default_factory=dict)


LANES = {
    "cpu": Lane(".venv", "cpu"),
    "page": Lane(".venv-page", "cpu"),
    "A2": Lane(".venv-ascend", "ascend", {"NPU_EMULATOR_CHIP": "A2"}),
    "310P": Lane(".venv-ascend", "ascend", {"NPU_EMULATOR_CHIP": "310P"}),
}


@dataclass(frozen=True)
class Bug:
    """A row of the list.

    name: what is wrong then, a sentence.
    file: the file that is changed, from the top of the repository.
    old, new: a text that occurs in it once, and the text that takes its place.
    tests: pytest's arguments.
    lane: one of `LANES`.
    lives: why no test finds it, where that is known.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    lane: str = "cpu"
    lives: str = ""

    def plant(self, text: str) -> str:
        """The content of the file with the bug.

        Raises:
            ValueError: `old` does not occur exactly once.
        """
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name} {self.file} has {count} times, not once: {self.old!r}")
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Outcome:
    """The result for one bug: KILLED, LIVES, NOT_RUN or BROKEN, and the line of its run."""

    bug: Bug
    result: str
    line: str
    seconds: float

    @property
    def test(self) -> str:
        """The test that failed, with all its parameters; empty where no test began."""
        return _without_parameters(self.line) if "::" in self.line else ""


def read_list(path: Path = LIST) -> list[Bug]:
    """Return the bugs of the list, in its order."""
    rows = tomllib.loads(path.read_text())["bug"]
    return [Bug(**row | {"tests": tuple(row["tests"])}) for row in rows]


def copy_tree(root: Path, target: Path) -> None:
    """Copy the tracked files of `root`, as they are now, and link its environments."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)
    for environment in root.glob(".venv*"):
        (target / environment.name).symlink_to(environment.resolve())


@contextmanager
def planted(bug: Bug, tree: Path) -> Iterator[None]:
    """Have the bug in the file while the context lasts."""
    file = tree / bug.file
    whole = file.read_text()
    try:
        file.write_text(bug.plant(whole))
        _forget_compiled(file)
        yield
    finally:
        file.write_text(whole)
        _forget_compiled(file)


def _forget_compiled(file: Path) -> None:
    """Python takes a compiled file for fresh by its size and the second, which both may agree."""
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
        compiled.unlink()


@dataclass(frozen=True)
class Run:
    """One run of pytest: its exit code (None when it was out of time), and what it printed."""

    code: int | None
    failed: list[str]
    closing: str

    @property
    def line(self) -> str:
        """The test that failed, or else pytest's closing line."""
        return self.failed[0] if self.failed else self.closing

    @property
    def passed(self) -> bool:
        """Whether all tests passed that ran, and one did."""
        return self.code == 0 and re.search(r"\b[1-9]\d* passed", self.closing) is not None


def run_tests(
    tests: Iterable[str], lane: Lane, tree: Path, *options: str, seconds: float | None = None
) -> Run:
    """Run the tests, pytest's arguments, in `tree`, for so many seconds, or SECONDS."""
    most = seconds or SECONDS
    python = str(tree / lane.environment / "bin" / "python")
    command = [python, "-m", "pytest", "-m", lane.marker, "-q", "-p", "no:cacheprovider", *options]
    with tempfile.TemporaryDirectory() as scrap:
        variables = {
            "PYTHONPATH": str(tree),
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "NUMBA_CACHE_DIR": scrap,  # it would not notice a change in another file
            **lane.variables,
        }
        process = subprocess.Popen(
            [*command, *tests],
            cwd=tree,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            printed, _ = process.communicate(timeout=most)
        except subprocess.TimeoutExpired:
            return Run(None, [], f"not ready within {most} s")
        finally:
            _end_group(process)
    lines = [line for line in printed.splitlines() if line.strip()] or ["printed nothing"]
    closing = [line for line in lines if _CLOSING.search(line)]  # engines may print after it
    failed = [found[1] for line in lines if (found := _FAILED.match(line))]
    return Run(process.returncode, failed, (closing or lines)[-1])


def _end_group(process: subprocess.Popen[str]) -> None:
    """End the processes that the tests started and left."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


class Runner:
    """Copies of the tree for `jobs` runs side by side."""

    def __init__(self, root: Path, scrap: Path, jobs: int) -> None:
        self.trees: queue.Queue[Path] = queue.Queue()
        for number in range(jobs):
            copy_tree(root, scrap / f"tree{number}")
            self.trees.put(scrap / f"tree{number}")

    def attempt(self, bug: Bug) -> Outcome:
        """Plant a bug, and run its tests."""
        started = time.monotonic()
        with self._tree() as tree, planted(bug, tree):
            run = run_tests(bug.tests, LANES[bug.lane], tree, "-x")
        result = LIVES if run.passed else NOT_RUN if run.code in (0, NO_TESTS) else KILLED
        return Outcome(bug, result, run.line, time.monotonic() - started)

    def checked(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Run the tests that found a bug once more, without any, where they have to pass."""
        killed = [outcome for outcome in outcomes if outcome.result == KILLED]
        failing = {
            lane: self._failing(sorted({o.test for o in killed if o.bug.lane == lane} - {""}), lane)
            for lane in LANES
        }

        def is_broken(outcome: Outcome) -> bool:
            if outcome.test:
                return outcome.test in failing[outcome.bug.lane]
            with self._tree() as tree:
                return not run_tests(outcome.bug.tests, LANES[outcome.bug.lane], tree).passed

        broken = {outcome.bug for outcome in killed if is_broken(outcome)}
        return [replace(o, result=BROKEN) if o.bug in broken else o for o in outcomes]

    def _failing(self, tests: Sequence[str], lane: str) -> set[str]:
        """Those of the tests that fail without a bug."""
        if not tests:
            return set()
        with self._tree() as tree:
            run = run_tests(tests, LANES[lane], tree, seconds=SECONDS * len(tests))
        if run.code in (0, 1):
            return set(map(_without_parameters, run.failed))
        if len(tests) == 1:
            return set(tests)
        return set().union(*(self._failing([test], lane) for test in tests))

    @contextmanager
    def _tree(self) -> Iterator[Path]:
        tree = self.trees.get()
        try:
            yield tree
        finally:
            self.trees.put(tree)


def _without_parameters(test: str) -> str:
    return test.partition("[")[0]


def run_all(bugs: Sequence[Bug], root: Path, jobs: int) -> list[Outcome]:
    """Plant every bug in its turn, and print what becomes of it."""
    with tempfile.TemporaryDirectory() as scrap, ThreadPoolExecutor(jobs) as pool:
        runner = Runner(root, Path(scrap), jobs)
        outcomes = []
        for outcome in pool.map(runner.attempt, bugs):
            outcomes.append(outcome)
            print(_row(outcome), flush=True)
        checked = runner.checked(outcomes)
    for outcome in checked:
        if outcome.result == BROKEN:
            print(_row(outcome), flush=True)
    return checked


def _row(outcome: Outcome) -> str:
    bug, more = outcome.bug, f"{' '.join(outcome.bug.tests)}: {outcome.line}"
    if outcome.result == LIVES and bug.lives:
        more = f"known: {bug.lives}"
    elif outcome.result == KILLED:
        more = "the list says that it lives; " * bool(bug.lives) + f"by {outcome.line}"
    return f"{outcome.result:12} {outcome.seconds:4.0f} s  {bug.file}: {bug.name} ({more})"


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Run the command; returns 1 where too few of the bugs are killed."""
    parser = argparse.ArgumentParser(description="Plant small bugs, and see which tests find them.")
    parser.add_argument("--only", metavar="PATTERN", help="bugs whose file, name or lane match")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs side by side")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    options = parser.parse_args(arguments)
    bugs = read_list(root / LIST.relative_to(ROOT))
    if options.only:
        pattern = re.compile(options.only)
        bugs = [bug for bug in bugs if pattern.search(f"{bug.file} {bug.name} {bug.lane}")]
    if not bugs:
        raise SystemExit("No bug of the list is chosen.")
    outcomes = run_all(bugs, root, options.jobs)
    if options.json:
        rows = [
            {"name": o.bug.name, "file": o.bug.file, "lane": o.bug.lane, "result": o.result}
            | {"said": o.line, "seconds": round(o.seconds, 1), "known": o.bug.lives}
            for o in outcomes
        ]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    killed = sum(outcome.result == KILLED for outcome in outcomes)
    print(f"{killed} of {len(outcomes)} killed")
    return int(killed < ENOUGH * len(outcomes))


if __name__ == "__main__":
    sys.exit(main())
