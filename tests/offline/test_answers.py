# SPDX-License-Identifier: Apache-2.0
"""The results of `glm41v run`: whole after a kill, and added up."""

from __future__ import annotations

import csv
import json
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
