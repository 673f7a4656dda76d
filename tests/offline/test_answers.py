# SPDX-License-Identifier: Apache-2.0
"""The results of `glm41v run`: whole after a kill, and added up."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from vllm_glm41v_npu.offline.answers import Answer, AnswerFile, summary, write_mindie_csv

GOOD = Answer("a", "yes", None, "stop", 10, 5, 3.0, 1.0, (0.5, 0.25, 1.0, 0.25))
BAD = Answer("b", error="b.png cannot be read.")


def test_answers_are_on_disk_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.jsonl"
    file = AnswerFile(path)
    for answer in (GOOD, BAD):
        file.write(answer)
        last = json.loads(path.read_text().splitlines()[-1])
        assert last["id"] == answer.id
    assert last == {"id": "b", "error": "b.png cannot be read."}


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """Answers stay, errors are tried again, and the line that was being written goes."""
    path = tmp_path / "answers.jsonl"
    file = AnswerFile(path)
    file.write(GOOD)
    file.write(BAD)
    file.close()
    with path.open("a") as cut:
        cut.write('{"id": "c", "answ')
    resumed = AnswerFile(path, resume=True)
    assert resumed.done == {"a"}
    resumed.write(Answer("c", "no"))
    resumed.close()
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "c"]
    assert [file.name for file in tmp_path.iterdir()] == ["answers.jsonl"]


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("precious\nlines\n")
    with pytest.raises(FileExistsError, match="--resume"):
        AnswerFile(path)
    with pytest.raises(ValueError, match="line 1, is no answer of an earlier run"):
        AnswerFile(path, resume=True)
    assert path.read_text() == "precious\nlines\n"
    assert AnswerFile(tmp_path / "new.jsonl", resume=True).done == set()


def test_a_cut_within_a_character(tmp_path: Path) -> None:
    """Guards a run that cannot go on because of where it was killed: at each byte of a line."""
    path, line = tmp_path / "answers.jsonl", '{"id": "六\\"/", "answer": "数"}\n'.encode()
    whole = b'{"id": "a", "answer": "b"}\n'
    for length in range(len(line)):
        path.write_bytes(whole + line[:length])
        file = AnswerFile(path, resume=True)
        file.close()
        complete = length == len(line) - 1  # but for the end of the line
        assert file.done == ({"a", '六"/'} if complete else {"a"})
        assert path.read_bytes() == whole + (line if complete else b"")


@pytest.mark.parametrize(
    "content",
    [
        *("precious", '{"precious": 1}', '{"id": 5, "name": "x"}', '{"id": "a", "text": "x"', "é"),
        *('{"id": "task", "text": "What?"}\n', '{"id": "a", "answer": 5}\n', "[" * 100_000, "{"),
        *('{"id": "a", "answ{"id": "b", "answer": "c"}\n', "\0\0\0"),
    ],
)
def test_files_of_others_are_left_alone(tmp_path: Path, content: str) -> None:
    """Guards a file of one line, and requests that are taken for answers."""
    path = tmp_path / "other.jsonl"
    path.write_text(content)
    if content == "{":  # as every answer begins
        AnswerFile(path, resume=True).close()
        return
    with pytest.raises(ValueError, match="line 1, is no answer of an earlier run"):
        AnswerFile(path, resume=True)
    assert path.read_text() == content


@pytest.mark.parametrize("error", [True, False])
def test_two_runs_on_one_output(tmp_path: Path, error: bool) -> None:
    """Guards answers that a second run takes away, also after the first has rewritten the file."""
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": "x", "error": "e"}\n' if error else '{"id": "x", "answer": "a"}\n')
    first = AnswerFile(path, resume=True)
    with pytest.raises(ValueError, match="is being written by another run"):
        AnswerFile(path, resume=True)
    first.write(GOOD)
    first.close()
    second = AnswerFile(path, resume=True)
    assert "a" in second.done
    second.close()


def test_an_engine_that_outlives_its_run(tmp_path: Path) -> None:
    """Guards a lock that the processes of a killed run keep, forked as they are."""
    path, pipe, back = tmp_path / "answers.jsonl", os.pipe(), os.pipe()
    file = AnswerFile(path)
    child = os.fork()
    if child == 0:
        os.write(back[1], b"x")
        os.read(pipe[0], 1)
        os._exit(0)
    try:
        os.read(back[0], 1)
        file.write(GOOD)
        with pytest.raises(ValueError, match="another run"):  # the child has not unlocked it
            AnswerFile(path, resume=True)
        file.close()
        AnswerFile(path, resume=True).close()
    finally:
        os.write(pipe[1], b"x")
        os.waitpid(child, 0)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    file = AnswerFile(tmp_path / "answers.jsonl")
    file.write(GOOD)
    file.close()
    assert AnswerFile(tmp_path / "answers.jsonl", resume=True).done == {"a"}


def test_a_link_stays_one(tmp_path: Path) -> None:
    """Guards a link that a rewritten file takes the place of, and what is readable for others."""
    (tmp_path / "far").mkdir()
    real, link = tmp_path / "far" / "answers.jsonl", tmp_path / "answers.jsonl"
    link.symlink_to(real)
    file = AnswerFile(link)  # the link leads to nothing yet
    file.write(BAD)
    file.close()
    real.chmod(0o640)
    file = AnswerFile(link, resume=True)
    file.write(GOOD)
    file.close()
    assert link.is_symlink() and json.loads(real.read_text())["id"] == "a"
    assert real.stat().st_mode & 0o777 == 0o640
    assert list(real.parent.iterdir()) == [real]


def test_an_output_without_answers_goes(tmp_path: Path) -> None:
    """Guards a run that refuses to start again because its engine did not start."""
    AnswerFile(tmp_path / "answers.jsonl").close()
    AnswerFile(tmp_path / "answers.jsonl").close()


@pytest.mark.parametrize("resume", [True, False])
def test_outputs_that_are_no_files(tmp_path: Path, resume: bool) -> None:
    """Guards a pipe that is waited for, and answers that go nowhere."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(ValueError, match="a folder, a pipe or a device"):
            AnswerFile(path, resume)
    for folder in ("/dev/null", "/dev/null/deep"):
        with pytest.raises(ValueError, match=f"{folder} is no folder"):
            AnswerFile(Path(folder, "answers.jsonl"), resume)


def test_a_line_is_one_line_for_every_reader(tmp_path: Path) -> None:
    """Guards line ends and terminal controls in answers, and names that are not UTF-8."""
    path = tmp_path / "answers.jsonl"
    answer = Answer("\udcff.png", "a\u2028b\x85c\x9b\x1b[31m\x7f数字 😀")
    file = AnswerFile(path)
    file.write(answer)
    file.close()
    text = path.read_bytes().decode()
    assert len(text.splitlines()) == 1 and text[:-1].isprintable() and "数字 😀" in text
    assert json.loads(text) == {"id": answer.id, "answer": answer.answer}
    assert AnswerFile(path, resume=True).done == {answer.id}


def test_summary() -> None:
    rows = dict(summary([GOOD, BAD, Answer("c", "no", None, "length", 20, 1, 2.0, 2.0)], 4.0))
    assert rows["answered"] == "2" and rows["failed"] == "1"
    assert rows["input tokens"] == "30" and rows["output tokens"] == "6"
    assert rows["requests per second"] == "0.50"
    assert rows["output tokens per second"] == "1.5"
    assert rows["time to first token, s"] == "1.500"
    assert rows["time per output token, s"] == "0.250"  # of 0.5 and, with one token, 0
    assert dict(summary([BAD], 1.0)) == {"answered": "0", "failed": "1"}
    many = [Answer(str(n), "a", output_tokens=1, seconds=n, first_seconds=n) for n in range(1, 12)]
    assert dict(summary(many, 1.0))["time of a request, s"] == "6.000 (90%: 10.800)"


def test_mindie_columns(tmp_path: Path) -> None:
    path = tmp_path / "benchmark.csv"
    write_mindie_csv(path, [GOOD, BAD], batch_size=4)
    (row,) = csv.DictReader(path.open())
    assert row == {
        "batch_size": "4",
        "input_seq_len": "10",
        "output_seq_len": "5",
        "e2e_time(ms)": "3000.0",
        "prefill_time(ms)": "1000.0",
        "decoder_token_time(ms)": "500.0",
        "prefill_count": "1",
        "prefill_token_times": "1000.0",
        "decode_token_times": "500.0,250.0,1000.0,250.0",
        "prefill_average_time(ms)": "1000.0",
    }
