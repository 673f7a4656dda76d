# SPDX-License-Identifier: Apache-2.0
"""Runs every command that the documentation shows, or has its own program parse it where that is
cheaper.

An engine is not started here: tests/test_cli.py, tests/offline and tests/end_to_end do that with
the commands `ask`, `run` and `serve`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.report.__main__ import app as report
from tests.doc_pages import (
    OTHER,
    PAGES,
    ROOT,
    SHELL,
    TARGETS,
    Command,
    blocks,
    commands,
    inline_commands,
    outline,
    serve_parser,
    shell_blocks,
)
from tests.serving.test_serve import SEED
from vllm_glm41v_npu.cli import app

HARDWARE = {
    "cat",
    "docker",
    "echo",
    "export",
    "git",
    "grep",
    "hf",
    "ls",
    "npu-smi",
    "sed",
    "source",
}
"""Commands for a machine with an NPU or docker: only their syntax is checked."""
ELSEWHERE = {"apt", "ray"}
"""Commands of the system or of .venv-ascend: likewise."""
PARSE_PIP = """
import json, sys
from pip._internal.commands import create_command
for words in json.load(sys.stdin):
    create_command(words[0]).parse_args(words[1:])
"""
DEFINITIONS = {"image", "in_image", "models", "npu", "npu+"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


class Parsed(Exception):
    """A program has parsed its arguments."""


def check_vllm(words: list[str]) -> None:
    if words[1] == "bench":
        module = "vllm.entrypoints.cli.benchmark." + words[2].replace("-", "_")
        assert len(words) == 3 and importlib.util.find_spec(module), words
        return
    assert words[:2] == ["vllm", "serve"], words
    serve_parser().parse_args(words[2:])


def check_glm41v(words: list[str]) -> None:
    """Have its own parser take it; run `serve` and `plan`, which need no engine."""
    group: Any = typer.main.get_command(app)
    with typer.Context(group) as context:
        name, command, arguments = group.resolve_command(context, words[1:])
        command.make_context(name, list(arguments), parent=context)
    if words[1] == "serve":
        result = CliRunner().invoke(app, ["serve", "--dry-run", *words[2:]])
        assert result.exit_code == 0, result.output
        served = shlex.split(result.stdout.splitlines()[-1])
        check_vllm(served[served.index("vllm") :])
    if words[1] == "plan" and "--server" not in words:
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, result.output


def check_python(words: list[str]) -> None:
    """Check that the module or file exists, and that its argparse takes the arguments."""
    if words[1:3] == ["-m", "pytest"]:
        check_pytest(words[2:])
        return
    if words[1] == "-m":
        name, arguments = words[2], words[3:]
        assert importlib.util.find_spec(name), name
    else:
        assert (ROOT / words[1]).is_file(), words[1]
        name, arguments = words[1].removesuffix(".py").replace("/", "."), words[2:]
    if name == "benchmarks.report":
        if arguments:  # alone in a sentence it is the name of the command
            typer.main.get_command(report).make_context(name, list(arguments))
        return
    if name.split(".")[0] not in ("benchmarks", "examples"):
        return
    module = importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(sys, "argv", [words[0], *arguments])
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        module.main()


def parse_and_stop(parser: argparse.ArgumentParser, *words: Any) -> None:
    unknown = parser.parse_known_args(*words)[1]
    assert unknown == []
    raise Parsed


def check_pytest(words: list[str]) -> None:
    values = {after for word, after in zip(words, words[1:], strict=False) if word in ("-k", "-m")}
    paths = [word for word in words[1:] if not word.startswith("-") and word not in values]
    assert all((ROOT / path).exists() for path in paths), words


def check_make(words: list[str]) -> None:
    assert {word for word in words[1:] if "=" not in word} <= TARGETS, words


def check_pip(words: list[str]) -> None:
    """The local files and folders are there, or cloned before; pip itself parses all at once."""
    for name in (word for word in words if word.startswith((".", "requirements/"))):
        path = ROOT / re.sub(r"\[\w+\]$", "", name)
        assert path.exists() or name in ("./vllm", "./vllm-ascend"), name


def check_script(words: list[str]) -> None:
    path = ROOT / words[0]
    assert path.stat().st_mode & 0o100, path
    assert subprocess.run(["bash", "-n", path]).returncode == 0


def check_curl(words: list[str], stdin: str) -> None:
    """Check that its body is JSON, without the files that the shell puts in."""
    body = words[words.index("-d") + 1]
    body = stdin if body == "@-" else body
    asked = json.loads(re.sub(r"\$\([^)]*\)", "", body))
    assert {"model", "messages"} <= asked.keys()


def check_in_container(words: list[str]) -> None:
    """Check what runs in a container: `vllm serve`, unless another entry point is named."""
    end = next(n for n, word in enumerate(words) if word == "$image" or word.startswith("glm41v:"))
    inner = words[end + 1 :]
    if "--entrypoint" in words:
        check(Command(inner))
    elif inner:
        check_vllm(["vllm", "serve", *inner])


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "glm41v": check_glm41v,
    "vllm": check_vllm,
    "python": check_python,
    "python3": check_python,
    "pytest": check_pytest,
    "make": check_make,
    "pip": check_pip,
    "in_image": check_in_container,
}


def check(command: Command) -> None:
    """Fail where the command would fail, or is not known."""
    words = command.words
    program = re.sub(r"^\.venv(-ascend)?/bin/", "", words[0])
    if program == "curl":
        check_curl(words, command.stdin)
    elif words[:2] == ["docker", "run"]:
        check_in_container(words)
    elif program.startswith("examples/"):
        check_script(words)
    elif program == "xargs":
        check(Command(words[1:]))
    elif program in CHECKS and len(words) + (program == "make") > 1:
        CHECKS[program]([program, *words[1:]])
    else:
        known = HARDWARE | ELSEWHERE | DEFINITIONS
        assert program in known or "=" in program, f"unknown: {command}"


@pytest.fixture(autouse=True)
def files_that_commands_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with the files that commands name."""
    (tmp_path / "config.json").write_text(json.dumps(SEED))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands(page: Path) -> None:
    """Guards against options, targets, files and modules that are not there, and open quotes."""
    for block in shell_blocks(page):
        syntax = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True)
        assert syntax.returncode == 0, syntax.stderr
        for command in commands(block):
            check(command)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_paragraphs(page: Path) -> None:
    """Guards the same in running text, where arguments that the reader adds may be missing."""
    for command in inline_commands(page):
        if command.words[0] == "glm41v" and len(command.words) == 2:
            assert command.words[1] in typer.main.get_command(app).commands  # type: ignore[attr-defined]
            continue
        try:
            check(command)
        except typer.BadParameter as error:
            assert "Missing" in error.format_message()


def test_pip_takes_the_options() -> None:
    """Guards against options of pip that are not there."""
    shown = [inline_commands(page) for page in PAGES]
    shown += [[*commands(block)] for page in PAGES for block in shell_blocks(page)]
    words = [command.words for found in shown for command in found]
    words = [found[found.index("pip") + 1 :] for found in words if "pip" in found[:2]]
    assert len(words) > 10
    # In a process of its own: pip does not import beside setuptools.
    command = [sys.executable, "-c", PARSE_PIP]
    result = subprocess.run(command, input=json.dumps(words), text=True, capture_output=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_it_is(page: Path) -> None:
    """Guards against commands that no test sees: in blocks of no kind, or merely indented."""
    assert {kind for kind, _ in blocks(page)} <= {*SHELL, *OTHER}
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"\n\n    (?![-*|\d])(\S.*)", text)
    assert indented == []


@pytest.mark.parametrize("page", [p for p in PAGES if ".zh." in p.name], ids=name_of)
def test_both_languages_have_the_same_parts(page: Path) -> None:
    """Guards against a section, a table row or a command that one language lacks; questions may
    differ."""
    english = page.with_name(page.name.replace(".zh.", "."))
    assert outline(page) == outline(english)
    pairs = [[[*commands(block)] for block in shell_blocks(p)] for p in (english, page)]
    ours, theirs = ([command.words for block in found for command in block] for found in pairs)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        differing = [pair for pair in zip(one, other, strict=True) if pair[0] != pair[1]]
        assert all(re.search("[\u4e00-\u9fff]", chinese) for _, chinese in differing), other


def test_unknown_commands_fail() -> None:
    """Guards the tests above against passing whatever they are given."""
    for text in (
        "glm41v ask --colour red a.png",
        "vllm serve MODEL --no-such-option",
        "make nothing",
        "python -m benchmarks.preprocess --no-such-option",
        "python examples/none.py",
        "pip install -r requirements/none.lock",
        "wget http://example.com",
    ):
        (command,) = commands(text)
        with pytest.raises((AssertionError, typer.TyperException, SystemExit)):
            check(command)
