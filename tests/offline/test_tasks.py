# SPDX-License-Identifier: Apache-2.0
"""What `glm41v run` makes of files, folders and lines."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from socket import AF_UNIX, socket
from typing import Any

import pytest

from vllm_glm41v_npu.offline.tasks import Task, TaskError, find_tasks
from vllm_glm41v_npu.processing.media_files import kind_of


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
        ({"image": ""}, "paths or lists of them"),
        ({}, "asks nothing"),
        ({"text": 5}, "text is 5; expected a text"),
        ({"text": "\ud800"}, "text holds half a character"),
        ({"text": "a", "system": [1]}, "system is \\[1\\]"),
        ({"text": "a", "id": []}, "id is \\[\\]"),
        ({"text": "a", "seed": "a"}, "seed is 'a'; expected a whole number of 64 bits"),
        ({"text": "a", "seed": 2**70}, "seed is 11805"),
        ({"text": "a", "seed": True}, "seed is True"),
        ({"text": "a", "temperature": float("nan")}, "temperature is nan"),
        ({"text": "a", "max_tokens": 0}, "max_tokens is 0; expected a whole number from 1"),
        ({"text": "a", "stop": [""]}, "stop is \\[''\\]; expected a text"),
        ({"messages": []}, "expected a list of messages, not empty"),
        ({"messages": "abc"}, "expected a list of messages"),
        ({"messages": [{"role": "user"}, {"content": "x"}]}, r"messages\[1\] .* with a role"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, r"content of messages\[0\] is"),
        ({"messages": [5]}, r"messages\[0\] is 5; expected an object"),
    ],
    ids=str,
)
def test_a_bad_line_is_one_error(folder: Path, line: Any, message: str) -> None:
    """Guards a run that ends at a line, and a reason that does not say which."""
    tasks = find_tasks([jsonl(folder, {"text": "good"}, line, {"text": "good"})], [])
    assert [bool(task.error) for task in tasks] == [False, True, False]
    assert tasks[1].id == "tasks.jsonl:2"
    assert re.search(rf"(tasks\.jsonl, line 2: |tasks\.jsonl:2).*{message}", tasks[1].error)


def test_an_error_has_the_id_of_its_line(folder: Path) -> None:
    (task,) = find_tasks([jsonl(folder, {"id": "mine", "text": "a", "seed": 0.5})], [])
    assert task.id == "mine" and "tasks.jsonl, line 1: seed is 0.5" in task.error


def test_a_setting_that_is_null_is_not_set(folder: Path) -> None:
    (task,) = find_tasks(
        [jsonl(folder, {"text": "a", "id": None, "image": None, "seed": None})], []
    )
    assert task == Task("tasks.jsonl:1", "a")


def test_lines_as_others_write_them(folder: Path) -> None:
    """Guards lines that are cut at other line ends than \\n, and marks of Windows."""
    path = folder / "tasks.jsonl"
    texts = ["one\u2028two", "three\x85four", "five\x0bsix\x1c", "七"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert [task.text for task in find_tasks([path], [])] == texts


def test_lines_that_are_no_json(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a recursion that ends the run, a line in another encoding, and one without an end."""
    monkeypatch.setattr("vllm_glm41v_npu.offline.tasks.LINE_MIB", 1)
    path, good = folder / "tasks.jsonl", b'{"text": "a"}'
    bad = [b"[" * 100_000, '{"text": "é"}'.encode("latin-1"), b'{"text": ', b'{"text": "\0"}']
    bad += [b'{"seed": ' + b"9" * 9000 + b"}", b"\0" * (3 << 20)]
    path.write_bytes(b"\n".join(line for one in bad for line in (one, good)))
    tasks = find_tasks([path], [])
    assert [bool(task.error) for task in tasks] == [True, False] * len(bad)
    words = ("not JSON", "not UTF-8", "not JSON", "not JSON", "not JSON", "longer than 1 MiB")
    for number, (task, word) in enumerate(zip(tasks[::2], words, strict=True)):
        assert word in task.error and f"line {2 * number + 1}: " in task.error


def test_an_id_that_is_there_twice_is_one_error(folder: Path) -> None:
    lines = [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}, {"id": "b", "text": "z"}]
    tasks = find_tasks([jsonl(folder, *lines)], [])
    assert [task.id for task in tasks] == ["a", "tasks.jsonl:2", "b"]
    assert "Its id, 'a', is that of an earlier request" in tasks[1].error


def test_bad_inputs_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(TaskError, match="empty holds no picture and no video"):
        find_tasks([tmp_path / "empty"], ["a"])
    with pytest.raises(TaskError, match="none does not exist"):
        find_tasks([tmp_path / "none"], ["a"])
    with pytest.raises(TaskError, match="loop is no file and no folder"):
        find_tasks([tmp_path / "loop"], ["a"])
    with pytest.raises(TaskError, match="10.png is there twice"):
        find_tasks([folder / "10.png", folder], ["a"])
    with pytest.raises(TaskError, match="prompt-0 asks nothing"):
        find_tasks([], [""])
    with pytest.raises(TaskError, match="none.jsonl cannot be read .No such file"):
        find_tasks([folder / "none.jsonl"], [])
    with pytest.raises(TaskError, match="notes.txt is no picture and no video"):
        find_tasks([folder / "notes.txt"], ["a"])[0].conversation()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def bound(path: Path) -> None:
    with socket(AF_UNIX) as listening:
        listening.bind(str(path))


def circle(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [pipe, endless, bound, circle, Path.mkdir])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """Guards a run that hangs, or fills the memory, at a pipe, a device or a socket."""
    for name in ("a.png", "a.ts", "a.jsonl"):
        make(tmp_path / name)
    (tmp_path / "good.png").write_bytes(b"data")
    tasks = find_tasks([tmp_path], ["a"], say=lambda sentence: None)
    assert tasks[-1].id == str(tmp_path / "good.png")
    with pytest.raises(TaskError, match="a.png cannot be read"):
        Task("a", files=(tmp_path / "a.png",)).conversation()
    if make is not Path.mkdir:
        with pytest.raises(TaskError, match="a.jsonl cannot be read"):
            find_tasks([tmp_path / "a.jsonl"], [])


@pytest.mark.parametrize("name", ["a\0.png", "\ud800.png", "n" * 300 + ".png", "a.png/b.png"])
def test_names_that_no_file_has(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.png").write_bytes(b"data")
    with pytest.raises(TaskError, match="cannot be read"):
        Task("a", files=(tmp_path / name,)).conversation()


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    path.write_bytes(b"data")
    (task,) = find_tasks([tmp_path], ["a"])
    assert task.files == (path,) and task.conversation()


def test_what_is_left_out_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards files, links and folders that nobody knows were not asked about."""
    (folder / "link").symlink_to(folder)
    (folder / "closed").mkdir()
    scan = os.scandir

    def scandir(path: Path) -> Any:
        if path.name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    said: list[str] = []
    assert len(find_tasks([folder], ["a"], say=said.append)) == 5
    (sentence,) = said
    left_out = "closed (Permission denied), link (a link to a folder), notes.txt"
    assert f"Left out of {folder}: {left_out}. " in sentence and ".jfif" in sentence
    for number in range(9):
        (folder / f"{number}.csv").touch()
    find_tasks([folder], ["a"], say=said.append)
    assert "4.csv and 7 more. " in said[1]


def test_formats_that_a_folder_has(tmp_path: Path) -> None:
    """Guards formats that are read and yet left out; .ts is a video by its content alone."""
    names = {"a.jfif", "b.avif", "c.jp2", "d.3gp", "e.FLV", "f.ts", "g.heic", "h.ico"}
    for name in names | {"program.ts"}:
        (tmp_path / name).write_bytes((b"G" + bytes(187)) * 3 if name == "f.ts" else b"let a = 1;")
    tasks = find_tasks([tmp_path], ["a"], say=lambda sentence: None)
    assert {task.files[0].name for task in tasks} == names


@pytest.mark.parametrize(
    ("name", "head", "kind"),
    [
        ("clip.png", b"\0\0\0\x20ftypisom", "video"),
        ("clip", b"\x1a\x45\xdf\xa3\0\0", "video"),
        ("clip.jpg", b"RIFF\0\0\0\0AVI LIST", "video"),
        ("still.mp4", b"\xff\xd8\xff\xe0", "image"),
        ("still.mov", b"\0\0\0\x20ftypavif", "image"),
        ("still", b"RIFF\0\0\0\0WEBP", "image"),
        ("anything.mp4", b"data", "video"),
        ("anything.png", b"data", "image"),
        ("anything.png", b"", "image"),
        ("anything.txt", b"data", None),
    ],
)
def test_content_says_what_a_file_is(
    tmp_path: Path, name: str, head: bytes, kind: str | None
) -> None:
    """Guards a clip that is opened as a picture because of its name; names help with the rest."""
    (tmp_path / name).write_bytes(head + bytes(200) * (head != b"data"))
    assert kind_of(tmp_path / name) == kind


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards files that are read whole before they are refused."""
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(1 << 40)
    monkeypatch.setenv("VLLM_GLM41V_NPU_MAX_IMAGE_MB", "3")
    with pytest.raises(TaskError, match="large.png cannot be read .it is larger than 3 MiB"):
        Task("a", files=(tmp_path / "large.png",)).conversation()


def test_a_video_has_a_limit_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards videos, most of which are larger than any picture may be."""
    monkeypatch.setenv("VLLM_GLM41V_NPU_MAX_IMAGE_MB", "1")
    monkeypatch.setenv("VLLM_GLM41V_NPU_MAX_VIDEO_MB", "2")
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"\0\0\0\x18ftypmp42" + bytes((2 << 20) - 12))
    assert Task("clip", files=(path,)).conversation()
    path.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(TaskError, match="larger than 2 MiB"):
        Task("clip", files=(path,)).conversation()
