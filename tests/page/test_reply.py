# SPDX-License-Identifier: Apache-2.0
"""What the page makes of a stream, and of a conversation."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, UnidentifiedImageError

from vllm_glm41v_npu.page.conversation import (
    ERROR,
    NOTE,
    MediaError,
    last_media,
    open_picture,
    request,
)
from vllm_glm41v_npu.page.streamed_answer import StreamedAnswer
from vllm_glm41v_npu.serving.grounding import Box

ASSETS = Path(__file__).resolve().parent.parent.parent / "assets"
PICTURE = str(ASSETS / "pictures" / "printed.png")
CLIP = str(ASSETS / "videos" / "numbers.mp4")

BOX = "<|begin_of_box|>[[10, 20, 300, 400]]<|end_of_box|>"


def reply(*deltas: dict[str, str], finish: str = "stop") -> StreamedAnswer:
    made = StreamedAnswer()
    for delta in deltas:
        made.add({"delta": delta})
    made.add({"delta": {}, "finish_reason": finish})
    made.end()
    return made


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_thinking_of_a_parser(field: str) -> None:
    """Guards both names of the field, and its end where the content begins."""
    made = reply(
        {"role": "assistant", "content": ""}, {field: "Tw"}, {field: "o."}, {"content": "2"}
    )
    assert (made.thinking, made.content, made.cut) == ("Two.", "2", False)


def test_thinking_without_a_parser() -> None:
    """Guards against tags on the page, however the stream cuts them."""
    text = f"<think>Two.</think><answer>At {BOX}.</answer>"
    for size in (1, 3, len(text)):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        made = reply(*({"content": piece} for piece in pieces), finish="length")
        assert (made.thinking, made.content) == ("Two.", "At [[10, 20, 300, 400]].")
        assert made.boxes() == [Box(10, 20, 300, 400)]
        assert made.cut


def test_an_answer_that_ends_like_a_tag() -> None:
    """Guards the last letters of an answer, which wait for the rest of a tag."""
    assert reply({"content": "a <"}).content == "a <"
    assert reply({"content": "<think>a </th"}, finish="length").thinking == "a </th"


def test_only_marked_boxes_where_there_are_markers() -> None:
    """Guards against a box drawn of a list that is none, which the shown content would give."""
    assert len(reply({"content": f"Of [1, 2, 3, 4]: {BOX}"}).boxes()) == 1


def user(*files: str, text: str = "") -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "file", "file": {"path": path}} for path in files]
    words = [{"type": "text", "text": text}] if text else []
    return {"role": "user", "content": parts + words, "metadata": None}


def assistant(text: str, **metadata: str) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": [{"type": "text", "text": text}],
        "metadata": metadata or None,
    }


def kinds(message: dict[str, Any]) -> list[str]:
    return [part["type"] for part in message["content"]]


def test_request() -> None:
    """Guards the order of media and text, and against thinking or notes sent as an answer."""
    history = [
        user(PICTURE, text="What?"),
        assistant("I see.", title="Thinking", status="done"),
        assistant("6021"),
        assistant("The answer ends here.", id=NOTE),
    ]
    system, first, said, new = request(history, [CLIP, PICTURE], "And here?", "Be brief.")
    assert system == {"role": "system", "content": "Be brief."}
    assert kinds(first) == ["image_url", "text"]
    assert said == {"role": "assistant", "content": "6021"}
    assert kinds(new) == ["video_url", "image_url", "text"]
    prefix, data = new["content"][0]["video_url"]["url"].split(",")
    assert prefix == "data:video/mp4;base64"
    assert base64.b64decode(data) == Path(CLIP).read_bytes()


def test_a_turn_that_failed_is_not_sent_again() -> None:
    """Guards against the same picture twice in the request after an error."""
    history = [
        user(text="One?"),
        assistant("1"),
        user(PICTURE),
        assistant("I s"),
        assistant("", id=ERROR),
    ]
    messages = request(history, [PICTURE], "", " ")
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]


def test_what_an_answer_is_about() -> None:
    """Guards boxes drawn on the picture of another question."""
    history = [user(CLIP), assistant("1"), user(PICTURE), assistant("2"), user(text="Where?")]
    assert last_media(history, []) == [PICTURE]
    assert last_media(history, [CLIP]) == [CLIP]
    assert last_media([], []) == []


def test_other_files_are_refused(tmp_path: Path) -> None:
    """Guards against a text file sent as a picture, by whoever goes round the page's own check."""
    path = tmp_path / "notes.txt"
    path.touch()
    with pytest.raises(MediaError, match="notes.txt is neither a picture nor a video"):
        request([], [str(path)], "What?", "")


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the page's memory, and against a conversation that cannot go on after a refusal."""
    history = [user(*[PICTURE] * 10), assistant("1")]
    assert len(request(history, [PICTURE] * 6, "", "")) == 3
    with pytest.raises(MediaError, match="has 17 files of .* the page sends 16 files and 512 MiB"):
        request(history, [PICTURE] * 7, "", "")
    history += [user(*[PICTURE] * 7), assistant("", id=ERROR)]
    assert len(request(history, [PICTURE], "", "")) == 3
    with pytest.raises(MediaError, match="gone.png is not here any more.*upload it again"):
        request([], [str(tmp_path / "gone.png")], "", "")
    large = tmp_path / "large.mp4"
    with large.open("wb") as file:
        file.truncate((512 << 20) + 1)  # sparse; it is not read
    with pytest.raises(MediaError, match="has 1 files of 512.0 MiB together"):
        request([], [str(large)], "", "")


def test_an_upload_of_another_kind_is_not_opened(tmp_path: Path) -> None:
    """Guards against EPS under the name of a PNG, for which Pillow runs Ghostscript."""
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    with pytest.raises(UnidentifiedImageError):
        open_picture(str(path))
    assert open_picture(PICTURE) is not None
