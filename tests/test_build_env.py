# SPDX-License-Identifier: Apache-2.0
"""What builds and runs the CPU environment: tools/build_env.py, the Makefile and .ci/run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import build_env

ROOT = Path(__file__).resolve().parent.parent


def test_another_python_is_refused(monkeypatch):
    """Guards against a pip failure a minute later, where the lock file has no wheels."""
    monkeypatch.setattr(build_env.sys, "version_info", (3, 10, 13))
    with pytest.raises(SystemExit, match="Python 3.11 and 3.12 .*`make PYTHON="):
        build_env.main()


def test_environment_is_rebuilt_when_a_lock_changes(tmp_path, monkeypatch):
    """Guards against a stale environment after a version was changed."""
    lock = tmp_path / "cpu.lock"
    monkeypatch.setattr(build_env, "LOCKS", [lock])
    lock.write_text("setuptools==1\n")
    before = build_env.fingerprint()
    assert build_env.fingerprint() == before
    assert build_env.pinned("setuptools") == "setuptools==1"
    lock.write_text("setuptools==2\n")
    assert build_env.fingerprint() != before


def test_missing_programs_are_named(tmp_path, monkeypatch):
    """Guards against a compiler's traceback after minutes of downloads, or a warning for naught."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    for program in ("lscpu", "g++"):
        warning = build_env.missing_programs()
        assert f"{program} " in warning and build_env.PROGRAMS[program][0] in warning
        assert "\n" not in warning
        (tmp_path / program).touch(mode=0o755)
    assert build_env.missing_programs() == ""


@pytest.mark.parametrize(("compiler", "disabled"), [("no-such-compiler", "1"), ("sh", "")])
def test_make_compiles_nothing_without_a_compiler(compiler, disabled):
    """Guards against an engine that dies at start-up without g++, and against slow ones with it."""
    show = "show:\n\t@echo [$$TORCH_COMPILE_DISABLE]\n"
    makefiles = ["-f", "Makefile", "-f", "-"]
    environment = {k: v for k, v in os.environ.items() if k != "TORCH_COMPILE_DISABLE"}
    result = subprocess.run(
        ["make", "-s", *makefiles, "show"],
        cwd=ROOT,
        env=environment | {"CXX": compiler, "PYTHON": sys.executable},
        input=show,
        text=True,
        capture_output=True,
    )
    assert result.stdout == f"[{disabled}]\n", result.stderr


def test_moved_environment_is_made_anew(tmp_path, monkeypatch):
    """Guards against scripts that start the Python of the folder a clone was moved from."""
    made = []
    monkeypatch.setattr(
        build_env.venv, "create", lambda folder, **options: made.append((folder, options["clear"]))
    )
    here, there = tmp_path / "here", tmp_path / "x" / "here"
    (here / "bin").mkdir(parents=True)
    (here / "bin" / "pip").touch()
    version = build_env.platform.python_version()
    monkeypatch.setattr(build_env, "VENV", here)
    for place in (here, there):
        (here / "pyvenv.cfg").write_text(
            f"version = {version}\ncommand = /bin/python3 -m venv {place}\n"
        )
        build_env.create_venv()
    assert made == [(here, True)]  # for the second place alone


@pytest.mark.parametrize("ci", ["1", "true"])
def test_wheel_cache(tmp_path, monkeypatch, ci):
    """Guards against wheels downloaded by each CI run, and against one run breaking another's."""
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = tmp_path / "vllm-glm41v-npu"
    python = f"py{sys.version_info[0]}{sys.version_info[1]}"
    stale, others = cache / f"wheels-{python}-0", [cache / "wheels-py39-0", cache / "partial-0"]
    for folder in (stale, *others):
        folder.mkdir(parents=True)
    calls = []

    def pip(*arguments):
        calls.append(arguments)
        folder = arguments[arguments.index("--wheel-dir") + 1]
        folder.mkdir()
        (folder / "a.whl").touch()

    monkeypatch.setattr(build_env, "pip", pip)
    for _ in range(2):
        wheels = build_env.wheel_options()[-1]
        assert [path.name for path in Path(wheels).iterdir()] == ["a.whl"]
    assert len(calls) == 1
    assert sorted(cache.iterdir()) == sorted([wheels, *others])


def test_interrupted_wheel_cache_is_not_used(tmp_path, monkeypatch):
    """Guards against installing from a folder that holds half of the wheels."""

    def pip(*arguments):
        arguments[arguments.index("--wheel-dir") + 1].mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(build_env, "pip", pip)
    with pytest.raises(KeyboardInterrupt):
        build_env.fill(tmp_path / "cache" / "wheels")
    assert list((tmp_path / "cache").iterdir()) == []


def test_wheel_cache_filled_by_two_at_once(tmp_path, monkeypatch):
    """Guards against a CI run that fails because another one was quicker."""
    wheels = tmp_path / "wheels"

    def pip(*arguments):
        arguments[arguments.index("--wheel-dir") + 1].mkdir()
        wheels.mkdir()
        (wheels / "the-others.whl").touch()

    monkeypatch.setattr(build_env, "pip", pip)
    build_env.fill(wheels)
    assert [path.name for path in tmp_path.rglob("*")] == ["wheels", "the-others.whl"]


@pytest.mark.parametrize("status", [0, 2])
def test_ci_run_ends_with_pytests_closing_line(tmp_path, status):
    """Guards against a failure in a source tree without git, a result that is hard to find, and
    an exit code that says otherwise."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parent.parent)
    closing = "==== 1 failed, 2 passed in 3.10s ===="
    make = tmp_path / "make"
    make.write_text(
        f'#!/bin/sh\n[ $1 = env ] || {{ echo "{closing}"; echo bye; exit {status}; }}\n'
    )
    make.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GIT_DIR": "none"}
    result = subprocess.run(
        [tmp_path / ".ci" / "run"], env=environment, text=True, capture_output=True
    )
    assert result.returncode == status, result.stderr
    assert result.stdout.startswith("commit unknown, ")
    assert result.stdout.splitlines()[-2:] == ["bye", closing]
