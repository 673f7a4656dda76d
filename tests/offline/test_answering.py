# SPDX-License-Identifier: Apache-2.0
"""How a run ends: interrupted, on a full disk, with an engine that stopped; and what it prints."""

from __future__ import annotations

import io
import json
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.checkpoints import TINY
from tests.offline.stand_in import Engine, llm
from vllm_glm41v_npu.cli import app
from vllm_glm41v_npu.cli.answering import answer_all, check_outputs, write_table
from vllm_glm41v_npu.cli.terminal import echo, one_line, printable
from vllm_glm41v_npu.offline.answers import MINDIE_COLUMNS, Answer, AnswerFile, RunEnded
from vllm_glm41v_npu.offline.tasks import Task

RUN = ["run", "--model", str(TINY)]
TASKS = [Task("a"), Task("b"), Task("c")]


def ending(error: BaseException | None = None, text: str = "yes") -> Any:
    """A runner that answers the first two tasks, and then raises."""

    def run(tasks: list[Task]) -> Iterator[Answer]:
        for task in tasks[:2]:
            yield Answer(task.id, text, output_tokens=1, seconds=1.0)
        if error:
            raise error

    return SimpleNamespace(run=run)


def ids(path: Path) -> list[str]:
    *lines, rest = path.read_text().split("\n")
    assert rest == ""  # every line is whole
    return [json.loads(line)["id"] for line in lines]


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "Interrupted after 2 of 3 requests. Go on by --resume."),
        (RunEnded("The engine stopped."), 1, "The engine stopped. 2 were answered before."),
    ],
)
def test_what_is_done_is_written(
    tmp_path: Path, capsys: Any, error: BaseException, code: int, words: str
) -> None:
    """Guards a traceback, lost answers, and a run that may not go on."""
    path = tmp_path / "answers.jsonl"
    given: list[Answer] = []
    with pytest.raises(SystemExit) as ended:
        answer_all(ending(error), TASKS, AnswerFile(path), True, given)
    assert ended.value.code == code and words in capsys.readouterr().err
    assert ids(path) == [answer.id for answer in given] == ["a", "b"]
    assert AnswerFile(path, resume=True).done == {"a", "b"}


def test_a_full_disk(tmp_path: Path, capsys: Any) -> None:
    """Guards a traceback, and half a line that the next run would have to explain."""
    path, text = tmp_path / "answers.jsonl", "y" * 600
    file, before = AnswerFile(path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(SystemExit) as ended:
            answer_all(ending(text=text), TASKS, file, True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ended.value.code == 1
    assert "cannot be written (File too large). 1 answers" in capsys.readouterr().err
    assert ids(path) == ["a"]


def test_a_full_disk_where_a_run_goes_on(tmp_path: Path) -> None:
    """Guards answers that are lost with the file that could not be rewritten."""
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"id": "a", "answer": "y" * 2000}) + '\n{"id": "b", "error": "e"}\n')
    before, content = resource.getrlimit(resource.RLIMIT_FSIZE), path.read_text()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            AnswerFile(path, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.filename == str(path) and path.read_text() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_terminal_that_is_a_full_disk(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """Guards a traceback where answers are printed into a file."""
    path = tmp_path / "answers.jsonl"
    with suppress(OSError), open("/dev/full", "w") as full:  # it fails once more as it is closed
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            answer_all(ending(), TASKS, AnswerFile(path), False)
    assert ended.value.code == 1 and ids(path) == ["a"]
    assert "cannot be printed (No space left on device)" in capsys.readouterr().err


def test_an_output_that_vanishes(tmp_path: Path, capsys: Any) -> None:
    """Guards answers that go into a file that nobody will find."""
    path = tmp_path / "deep" / "answers.jsonl"
    file = AnswerFile(path)
    path.rename(tmp_path / "moved.jsonl")
    path.parent.rmdir()
    with pytest.raises(SystemExit):
        answer_all(ending(), TASKS, file, True)
    assert "it was removed or replaced" in capsys.readouterr().err


def test_what_is_printed_is_text(capsys: Any) -> None:
    """Guards a terminal that names and answers steer, and lines that they forge."""
    evil = "\x1b]0;title\x07\r\x9b1m\u202e"
    tasks = [Task(f"a{evil}\nb: forged"), Task("\udcff.png")]
    answer_all(ending(text=f"one\n{evil}two\ttabs 六"), tasks, None, False)
    out = capsys.readouterr().out
    assert out.split("\n")[:2] == [
        r"a\x1b]0;title\x07\r\x9b1m\u202e\nb: forged: one",
        r"\x1b]0;title\x07\r\x9b1m\u202e" + "two\ttabs 六",
    ]
    assert out.endswith("tabs 六\n") and r"\udcff.png: one" in out
    assert printable("a\nb") == "a\nb" and one_line("a\nb") == r"a\nb"


def test_a_terminal_of_another_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a run that ends at a letter that the terminal does not have."""
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="gbk"))
    echo("数字 😀")
    sys.stdout.flush()
    assert shown.getvalue() == "数字 \\U0001f600\n".encode("gbk")


def test_outputs_that_would_write_over_something(tmp_path: Path) -> None:
    """Guards requests, pictures and answers that a run replaces by its own."""
    tasks, table = tmp_path / "tasks.jsonl", tmp_path / "table.csv"
    tasks.write_text("{}")
    (tmp_path / "link").symlink_to(tasks)
    for output, other in ((tmp_path / "link", None), (None, tasks), (table, table)):
        with pytest.raises(ValueError, match="reads or writes already"):
            check_outputs(output, other, [tasks])
    with pytest.raises(ValueError, match="reads or writes already"):
        check_outputs(tasks, None, [tmp_path / "link"])
    with pytest.raises(ValueError, match="holds no table"):
        check_outputs(None, tasks, [])
    check_outputs(tmp_path / "answers.jsonl", table, [tasks])
    write_table(table, [], 1)
    assert table.read_text().strip() == ",".join(MINDIE_COLUMNS)
    check_outputs(None, table, [])  # of an earlier run


def test_a_table_that_cannot_be_written(tmp_path: Path, capsys: Any) -> None:
    """Guards a traceback after the last answer."""
    write_table(tmp_path / "gone" / "table.csv", [], 1)
    assert "table.csv cannot be written (No such file or directory)" in capsys.readouterr().err


def test_requests_that_are_all_wrong(tmp_path: Path) -> None:
    """Guards an engine that is started for nothing, and an empty output that stays."""
    (tmp_path / "tasks.jsonl").write_text('{"text": "a", "seed": "a"}\n')
    output = tmp_path / "answers.jsonl"
    command = ["run", str(tmp_path / "tasks.jsonl"), "--output", str(output)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and not output.exists()
    assert "tasks.jsonl, line 1: seed is 'a'; expected a whole number" in result.stderr


@pytest.mark.parametrize(("option", "value"), [("seed", str(2**70)), ("temperature", "1e30")])
def test_settings_of_the_command(option: str, value: str) -> None:
    """Guards a run in which every request fails."""
    result = CliRunner().invoke(app, ["run", "--prompt", "a", f"--{option}", value])
    assert result.exit_code == 2 and f"{option} is " in result.stderr


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> tuple[Engine, dict[str, Any]]:
    """An engine's stand-in for `glm41v run`, and the arguments with which it was started."""
    engine, given = Engine(), dict[str, Any]()

    def start(**arguments: Any) -> Any:
        given.update(arguments)
        return llm(engine)

    monkeypatch.setattr("vllm.LLM", start)
    return engine, given


def test_plain_texts_and_an_output(command: Any, tmp_path: Path) -> None:
    """Guards answers to texts without files, and the second run, which has nothing left to ask."""
    engine, given = command
    path = tmp_path / "answers.jsonl"
    words = [*RUN, "--prompt", "One?", "--prompt", "Two?", "--output", str(path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert ids(path) == ["prompt-0", "prompt-1"]
    assert "prompt-1: answer" in result.stdout
    assert given["limit_mm_per_prompt"] == {"image": 0, "video": 0}
    engine.refusal = ValueError("asked again")
    again = CliRunner().invoke(app, [*words, "--resume"])
    assert again.exit_code == 0 and "2 of 2 are answered already" in again.stderr


def test_one_failure_among_answers(command: Any, tmp_path: Path) -> None:
    """Guards a script that takes a run with a failed request for a whole one."""
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"id": "good", "text": "a"}\n{"id": "bad", "text": "a", "seed": "a"}\n')
    result = CliRunner().invoke(app, [*RUN, str(path)])
    assert result.exit_code == 1
    assert "good: answer" in result.stdout and "bad failed: " in result.stderr


def test_the_most_media_of_a_request(command: Any, tmp_path: Path) -> None:
    """Guards requests that the engine would refuse, and memory for media that nobody sends."""
    _, given = command
    pictures, clip = (TINY.parent / name for name in ("pictures", "videos/numbers.mp4"))
    two = [str(pictures / "printed.png"), str(pictures / "wide.png")]
    lines = [{"text": "a", "image": two}, {"text": "a", "video": str(clip)}]
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    CliRunner().invoke(app, [*RUN, str(path)])
    assert given["limit_mm_per_prompt"] == {"image": 2, "video": 1}
