# SPDX-License-Identifier: Apache-2.0
"""The files that examples/aisbench writes for AISBench.

Its command needs numpy 1, so it is installed into an environment of its own, and run here only
where AISBENCH_VENV names that. tests/end_to_end/aisbench.py sends the requests that it makes of
these files to a server.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from examples.aisbench.run import HERE, ROOT, accuracy, write_configs
from examples.aisbench.textvqa import read_items, write_set

VALUES = {
    "model": "/weights",
    "name": "glm4v",
    "port": 8080,
    "max_tokens": 64,
    "at_once": 16,
    "questions": "/set/textvqa_val.jsonl",
    "suffix": " Be short.",
}


def test_a_set_in_textvqas_format(tmp_path: Path) -> None:
    """Guards the files that AISBench reads: absolute pictures, ten different answers each."""
    questions = write_set(tmp_path, 3)
    assert questions == tmp_path / "textvqa_val.jsonl"
    items = read_items(questions)
    assert len(items) == 3
    annotations = json.loads((tmp_path / "textvqa_val_annotations.json").read_text())
    for item, annotation in zip(items, annotations["annotations"], strict=True):
        assert item.picture.is_absolute()
        assert Image.open(item.picture).mode == "RGB"
        assert item.answer.isdigit()
        answers = annotation["answers"]
        assert {answer["answer"] for answer in answers} == {item.answer}
        assert len({json.dumps(answer) for answer in answers}) == 10


def test_configurations(tmp_path: Path) -> None:
    """Guards the names that AISBench looks for, and the server of this run in them."""
    folder = write_configs(tmp_path, VALUES)
    written = {path.name: path.read_text() for path in folder.rglob("*.py")}
    assert written.keys() == {path.stem for path in HERE.rglob("*.py.in")}
    assert "vllm_api_general_chat.py" in written
    for text in written.values():
        assert "$" not in text
        ast.parse(text)
    assert "host_port=8080" in written["vllm_api_stream_chat.py"]
    assert '"{question} Be short."' in written["textvqa_gen_base64.py"]


def test_the_summary_is_read(tmp_path: Path) -> None:
    """Guards the figure that is compared with the offline one."""
    (tmp_path / "summary").mkdir()
    summary = "dataset,version,metric,mode,vllm-api-general-chat\ntextvqa,1,accuracy,gen,97.50\n"
    (tmp_path / "summary" / "summary_1.csv").write_text(summary)
    assert accuracy(tmp_path) == 97.5


@pytest.mark.slow
def test_the_documented_command(tmp_path: Path) -> None:
    """Guards the whole way: AISBench's answers are as often right as those without a server."""
    if not (venv := os.environ.get("AISBENCH_VENV")):
        pytest.skip("AISBench is not here; set AISBENCH_VENV to an environment that has it")
    command = [sys.executable, "examples/aisbench/run.py", "accuracy", "--pictures", "8"]
    command += ["--folder", str(tmp_path), "--venv", venv]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    found = re.findall(r"(\d+\.\d\d)%", done.stdout)
    assert len(found) == 2 and float(found[0]) == float(found[1]) >= 75
