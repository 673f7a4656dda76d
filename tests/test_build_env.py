# SPDX-License-Identifier: Apache-2.0
"""What builds and runs the environments: tools/build_env.py and the Makefile."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tools import build_env

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def environment(tmp_path: Path) -> build_env.Environment:
    """One of two packages and one project, with a folder and without anything in it."""
    (tmp_path / "cpu.lock").write_text("# All.\nsetuptools==1\nA_b.C==1\n")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "env").mkdir()
    return build_env.Environment(tmp_path / "env", (tmp_path / "cpu.lock",), (tmp_path,))


def record_pip(monkeypatch, act=lambda arguments: None) -> list[tuple]:
    """Let pip do nothing but `act`; the calls of it."""
    calls = []

    def pip(environment, *arguments):
        calls.append(arguments)
        act(arguments)

    monkeypatch.setattr(build_env.Environment, "pip", pip)
    return calls


def wheel_folder(arguments: tuple) -> Path:
    return arguments[arguments.index("--wheel-dir") + 1]


def test_another_python_is_refused(monkeypatch):
    """Guards against a pip failure a minute later, where the lock file has no wheels."""
    monkeypatch.setattr(build_env.sys, "version_info", (3, 10, 13))
    with pytest.raises(SystemExit, match="Python 3.11 and 3.12 .*`make PYTHON="):
        build_env.main()


def test_unknown_environment_is_refused():
    """Guards against a typing error that builds the CPU environment, or nothing, and says done."""
    for arguments in (["gpu"], ["cpu", "ascend"]):
        with pytest.raises(SystemExit, match="choose cpu or ascend"):
            build_env.main(*arguments)


def test_environment_is_rebuilt_when_a_lock_changes(environment):
    """Guards against a stale environment after a version was changed."""
    (lock,) = environment.locks
    before = environment.fingerprint()
    assert environment.fingerprint() == before != environment.fingerprint("more")
    lock.write_text(lock.read_text().replace("All", "Everything"))
    assert environment.fingerprint() == before
    lock.write_text(lock.read_text().replace("setuptools==1", "setuptools==2"))
    assert environment.fingerprint() != before


def test_later_locks_replace_lines(environment, tmp_path):
    """Guards against two torches for pip to choose from, and a package of CUDA's installed."""
    cpu, own = tmp_path / "cpu.lock", tmp_path / "own.lock"
    cpu.write_text("torch==2\nA_b.C==1\ntriton==3\nnvidia-x==1\nnvidia_y==1\n")
    own.write_text("# Differs.\ntorch==1\na-B-c==2\ntriton-ascend==4\n\nnvidia-z==1\n")
    environment = replace(environment, locks=(cpu, own), left_out=("nvidia-*", "triton"))
    wanted = "torch==1 a-B-c==2 triton-ascend==4 nvidia-z==1"
    assert " ".join(environment.pins().values()) == wanted


def test_stamps_tell_what_to_do(environment, tmp_path, monkeypatch):
    """Guards against pip for a minute where one C++ file changed, libraries for a torch that is
    no longer there, and a stamp that an interrupted build leaves."""
    source = tmp_path / "boxed.cpp"
    source.touch()
    environment = replace(environment, compiled=(source,))
    monkeypatch.setitem(build_env.ENVIRONMENTS, "ascend", environment)
    monkeypatch.setattr(build_env, "check_compilers", lambda: done.append("check"))
    monkeypatch.setattr(build_env, "install", lambda environment: done.append("install"))
    monkeypatch.setattr(build_env, "compile_emulator", lambda environment: done.append("compile"))

    def build() -> list[str]:
        done.clear()
        build_env.main("ascend")
        return list(done)

    done: list[str] = []
    both = ["check", "install", "check", "compile"]
    assert (build(), build()) == (both, [])
    source.write_text("int changed;")
    assert (build(), build()) == (["check", "compile"], [])
    (tmp_path / "pyproject.toml").write_text("[project]")
    assert (build(), build()) == (["check", "install"], [])
    environment.locks[0].write_text("setuptools==2\n")

    def interrupted(environment):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build_env, "install", interrupted)
        with pytest.raises(SystemExit, match="run make again"):
            build()
    assert (build(), build()) == (both, [])

    # An environment that is made anew has no stamps.
    anew = lambda environment: (environment.folder / "emulator-from").unlink()  # noqa: E731
    monkeypatch.setattr(build_env, "install", anew)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    assert build() == ["check", "check", "compile"]


def test_what_is_installed(environment, tmp_path, monkeypatch):
    """Guards against a dependency that pip adds by itself, and against downloads nobody pinned."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(build_env, "create_venv", lambda folder: None)
    calls = record_pip(monkeypatch)
    build_env.install(environment)
    assert all("--no-deps" in call for call in calls)
    tool, packages, projects = calls
    assert tool[-1] == "setuptools==1"
    assert packages[-1].read_text() == "setuptools==1\nA_b.C==1\n"
    assert projects[-2:] == ("--editable", tmp_path)
    assert "--no-index" in projects


def test_environments_of_the_repository():
    """Guards against a name of a file that is not there, and against what is not watched."""
    for name, environment in build_env.ENVIRONMENTS.items():
        assert f"\n{environment.folder.name}/\n" in "\n" + (ROOT / ".gitignore").read_text()
        assert all((folder / "pyproject.toml").exists() for folder in environment.projects)
        assert all(path.exists() for path in (*environment.locks, *environment.compiled))
        assert (name == "ascend") == bool(environment.compiled)
    emulator = build_env.EMULATOR
    watched = {path.name for path in build_env.ENVIRONMENTS["ascend"].compiled}
    text = "".join((emulator / name).read_text() for name in watched if name.endswith(".py"))
    named = set(re.findall(r'parent / "([\w.]+)"', text))
    imported = {
        f"{module}.py" for module in re.findall(r"^from npu_emulator\.(\w+) import", text, re.M)
    }
    imported |= {
        f"{name}.py" for name in re.findall(r"^from npu_emulator import (\w+)$", text, re.M)
    }
    boxed = (emulator / "boxed.cpp").read_text()
    assert named | imported | {"build.py"} | set(re.findall(r'"(\w+\.h)"', boxed)) == watched


def test_missing_programs_are_named(tmp_path, monkeypatch):
    """Guards against a compiler's traceback after minutes of downloads, or a warning for naught."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    libraries: dict[str, str] = {}
    monkeypatch.setattr(build_env.ctypes.util, "find_library", libraries.get)
    for program in ("lscpu", "g++", "libnuma.so.1"):
        warning = build_env.missing_programs()
        assert f"{program} " in warning and build_env.CPU_NEEDS[program][0] in warning
        assert "\n" not in warning
        (tmp_path / program).touch(mode=0o755)
        libraries["numa"] = "libnuma.so.1" * program.startswith("lib")
    assert build_env.missing_programs() == ""


def test_missing_compilers_stop_the_build(tmp_path, environment, monkeypatch):
    """Guards against a gigabyte downloaded for an emulator that cannot be compiled."""
    monkeypatch.setitem(build_env.ENVIRONMENTS, "ascend", replace(environment, compiled=(ROOT,)))
    monkeypatch.setattr(build_env, "install", lambda environment: pytest.fail("installed"))
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "nm").touch(mode=0o755)
    with pytest.raises(SystemExit) as stopped:
        build_env.main("ascend")
    assert str(stopped.value).endswith(
        "not on PATH: gcc, g++, readelf. Debian: apt install gcc g++ binutils."
    )


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
    for place in (here, there):
        (here / "pyvenv.cfg").write_text(
            f"version = {version}\ncommand = /bin/python3 -m venv {place}\n"
        )
        build_env.create_venv(here)
    assert made == [(here, True)]  # for the second place alone


@pytest.mark.parametrize("ci", ["1", "true"])
@pytest.mark.parametrize(("name", "kind"), [(".venv", "wheels"), (".venv-x", "wheels-x")])
def test_wheel_cache(environment, tmp_path, monkeypatch, ci, name, kind):
    """Guards against wheels downloaded by each CI run, and against one run breaking another's."""
    environment = replace(environment, folder=tmp_path / name)
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = tmp_path / "vllm-glm41v-npu"
    python = f"py{sys.version_info[0]}{sys.version_info[1]}"
    stale = cache / f"{kind}-{python}-0"
    other = "wheels" if kind != "wheels" else "wheels-x"  # another environment's
    others = [cache / folder for folder in (f"{kind}-py39-0", f"{other}-{python}-0", "partial-0")]
    for folder in (stale, *others):
        folder.mkdir(parents=True)

    def download(arguments):
        wheel_folder(arguments).mkdir()
        (wheel_folder(arguments) / "a.whl").touch()

    calls = record_pip(monkeypatch, download)
    for _ in range(2):
        wheels = build_env.wheel_options(environment, tmp_path / "pinned.txt")[-1]
        assert [path.name for path in Path(wheels).iterdir()] == ["a.whl"]
    assert [call[-2:] for call in calls] == [("-r", tmp_path / "pinned.txt")]
    assert sorted(cache.iterdir()) == sorted([wheels, *others])


def test_interrupted_wheel_cache_is_not_used(environment, tmp_path, monkeypatch):
    """Guards against installing from a folder that holds half of the wheels."""

    def interrupt(arguments):
        wheel_folder(arguments).mkdir()
        raise KeyboardInterrupt

    record_pip(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_env.fill(environment, tmp_path / "cache" / "wheels", tmp_path / "pinned.txt")
    assert list((tmp_path / "cache").iterdir()) == []


def test_wheel_cache_filled_by_two_at_once(environment, tmp_path, monkeypatch):
    """Guards against a CI run that fails because another one was quicker."""
    wheels = tmp_path / "cache" / "wheels"

    def be_late(arguments):
        wheel_folder(arguments).mkdir()
        wheels.mkdir()
        (wheels / "the-others.whl").touch()

    record_pip(monkeypatch, be_late)
    build_env.fill(environment, wheels, tmp_path / "pinned.txt")
    found = [path.name for path in (tmp_path / "cache").rglob("*")]
    assert found == ["wheels", "the-others.whl"]


@pytest.mark.parametrize("failing", ["", "A2", "310P"])
def test_both_chips_are_tested(tmp_path, failing):
    """Guards against a chip that is not tested because the other failed, and a lost failure."""
    python, called = tmp_path / "python", tmp_path / "called"
    python.write_text(
        f'#!/bin/sh\necho "$NPU_EMULATOR_CHIP $*" >> {called}\n'
        f'[ "$NPU_EMULATOR_CHIP" != "{failing}" ]\n'
    )
    python.chmod(0o755)
    command = ["make", "test-ascend", f"VENV_ASCEND={tmp_path}", "PYTHON=true"]
    environment = {name: os.environ[name] for name in os.environ.keys() - {"CHIPS", "JOBS"}}
    result = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert (result.returncode != 0) == bool(failing), result.stderr
    steps = (
        "ascend and not ranks and not slow -n 2 --dist loadfile",
        "ascend and ranks and not slow",
    )
    runs = [f"{chip} -m pytest -m {step}" for chip in ("A2", "310P") for step in steps]
    assert called.read_text().splitlines() == runs
