# SPDX-License-Identifier: Apache-2.0
"""What `glm41v run` makes of files, folders and lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_glm41v_npu.offline.tasks import Task, TaskError, find_tasks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures, a video, a text and a folder in it."""
    (tmp_path / "more").mkdir()
    for name in ("10.png", "2.PNG", "1.mp4", "notes.txt", "more/3.jpg", "more/b.webp"):
        (tmp_path / name).write_bytes(b"data")
    return tmp_path


def jsonl(folder: Path, *lines: Any) -> Path:
    path = folder / "tasks.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_a_folder_is_gone_through_in_natural_order(folder: Path) -> None:
    found = [task.files[0].relative_to(folder) for task in find_tasks([folder], ["What?"])]
    assert [str(path) for path in found] == [
        "1.mp4",
        "2.PNG",
        "10.png",
        "more/3.jpg",
        "more/b.webp",
    ]


def test_prompts_go_to_files_in_turn_and_the_last_to_the_rest(folder: Path) -> None:
    """As MindIE's input_texts_for_image."""
    tasks = find_tasks([folder], ["first", "second"], system="Be brief.")
    assert [task.text for task in tasks] == ["first", "second", "second", "second", "second"]
    assert {task.system for task in tasks} == {"Be brief."}


def test_text_alone() -> None:
    tasks = find_tasks([], ["one", "two"])
    assert [(task.id, task.text, task.files) for task in tasks] == [
        ("prompt-0", "one", ()),
        ("prompt-1", "two", ()),
    ]
    assert tasks[0].conversation() == [
        {"role": "user", "content": [{"type": "text", "text": "one"}]}
    ]
    assert find_tasks([], []) == []


def test_lines(folder: Path) -> None:
    """Paths are relative to the file; what a line does not say comes from the command."""
    messages = [{"role": "user", "content": "hello"}]
    path = jsonl(
        folder,
        {"image": ["10.png", "2.PNG"], "text": "own", "max_tokens": 5, "id": 7},
        {"video": "1.mp4", "system": "own"},
        {"messages": messages, "id": "chat"},
    )
    first, second, third = find_tasks([path], ["common"], "common")
    assert first == Task(
        "7", "own", (folder / "10.png", folder / "2.PNG"), "common", (), {"max_tokens": 5}
    )
    assert second == Task("tasks.jsonl:2", "common", (folder / "1.mp4",), "own")
    assert third.conversation() == messages


def test_media_come_first_and_whole(folder: Path) -> None:
    (task,) = find_tasks([folder / "1.mp4"], ["What?"])
    user = task.conversation()[-1]["content"]
    url = "data:video/mp4;base64,ZGF0YQ=="
    assert user[0] == {"type": "video_url", "video_url": {"url": url}}
    assert user[1] == {"type": "text", "text": "What?"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([1], "expected a JSON object"),
        ({"picture": "a.png"}, "unknown keys picture; expected id, image"),
        ({"messages": [], "text": "a"}, "messages is the whole request"),
        ({"image": 5}, "paths or lists of them, not 5"),
        ({"image": [None]}, "paths or lists of them"),
    ],
)
def test_bad_lines_are_named(folder: Path, line: Any, message: str) -> None:
    with pytest.raises(TaskError, match=rf"tasks.jsonl, line 2: .*{message}"):
        find_tasks([jsonl(folder, {"text": "good"}, line)], [])


def test_bad_inputs_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskError, match="empty holds no picture and no video"):
        find_tasks([tmp_path / "empty"], ["a"])
    with pytest.raises(TaskError, match="none does not exist"):
        find_tasks([tmp_path / "none"], ["a"])
    with pytest.raises(TaskError, match="10.png is there twice"):
        find_tasks([folder / "10.png", folder], ["a"])
    with pytest.raises(TaskError, match="tasks.jsonl:1 asks nothing"):
        find_tasks([jsonl(folder, {})], [])
    (broken := folder / "broken.jsonl").write_text('{"text": ')
    with pytest.raises(TaskError, match="broken.jsonl, line 1"):
        find_tasks([broken], [])
    with pytest.raises(TaskError, match="notes.txt is no picture and no video"):
        find_tasks([folder / "notes.txt"], ["a"])[0].conversation()
