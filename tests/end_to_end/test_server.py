# SPDX-License-Identifier: Apache-2.0
"""`vllm serve` on the tiny checkpoint: answers, and bad input that harms nobody else."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.checkpoints import TINY
from tests.clips import Clip, audio_only
from tests.end_to_end.servers import MAX_MODEL_LEN, data_uri, running, video_uri
from tests.lane import ALL_LANES
from vllm_glm41v_npu.cli import app

pytestmark = ALL_LANES

PICTURES, VIDEOS = TINY.parent / "pictures", TINY.parent / "videos"
QUESTION = "What number is written in the picture?"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the server writes."""
    return tmp_path_factory.mktemp("server") / "log"


@pytest.fixture(scope="module")
def server(log: Path, checkpoint: Callable[[str], Path]) -> Iterator[httpx.Client]:
    """A client of a server that is stopped afterwards."""
    options = ["--served-model-name", "tiny", "--limit-mm-per-prompt", '{"image": 3, "video": 2}']
    options += ["--trust-request-chat-template", "--allowed-local-media-path", str(VIDEOS)]
    with running(checkpoint("tiny"), log, *options) as client:
        yield client


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def empty_png() -> bytes:
    """A PNG that says it is 0 x 0 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def part(url: str) -> dict[str, Any]:
    is_video = url.startswith(("data:video", "file:"))
    kind = "video_url" if is_video else "image_url"
    return {"type": kind, kind: {"url": url}}


def request(text: str, *urls: str) -> dict[str, Any]:
    parts = [part(url) for url in urls]
    content = [*parts, {"type": "text", "text": text}]
    return {"model": "tiny", "temperature": 0, "messages": [{"role": "user", "content": content}]}


def chat(server: httpx.Client, text: str, *urls: str, **options: Any) -> httpx.Response:
    return server.post("/v1/chat/completions", json=request(text, *urls) | options)


def answer(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def printed() -> str:
    return data_uri((PICTURES / "printed.png").read_bytes())


@pytest.fixture
def good_answer(server: httpx.Client) -> str:
    return answer(chat(server, QUESTION, printed()))


def truncated_jpeg() -> str:
    return data_uri((PICTURES / "photo.jpg").read_bytes()[:3000], "jpeg")


BAD_PICTURES = {
    "truncated": (truncated_jpeg, "truncated"),
    "text": (lambda: data_uri(b"this is a text file, not a picture"), "not a picture of a kind"),
    "empty": (lambda: data_uri(empty_png()), "not a picture of a kind"),
    "too-wide": (lambda: data_uri(png(Image.new("RGB", (8080, 40)))), "202.0; at most 200"),
    "bomb": (lambda: data_uri(png(Image.new("1", (30000, 30000)))), "decompression bomb"),
    "private": (lambda: "http://127.0.0.1:1/a.png", "no public address"),
}


def test_the_number_in_the_picture_is_read(good_answer: str) -> None:
    """Guards the answer itself: wrong kernels answer fluently."""
    assert "<answer>6021</answer>" in good_answer


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_a_bad_picture_is_the_callers_error(server, good_answer, kind: str) -> None:
    """Guards against a 500, a hang or a dead engine; the next request is answered as before."""
    make, reason = BAD_PICTURES[kind]
    with ThreadPoolExecutor(2) as threads:  # one in flight beside the bad one
        other = threads.submit(chat, server, QUESTION, printed())
        response = chat(server, QUESTION, make())
        assert answer(other.result()) == good_answer
    assert response.status_code == 400, response.text
    assert reason in response.json()["error"]["message"]
    assert answer(chat(server, QUESTION, printed())) == good_answer


def test_the_smallest_picture_is_answered(server) -> None:
    """Guards 1 x 1 pixels, which transformers accepts too."""
    assert answer(chat(server, QUESTION, data_uri(png(Image.new("RGB", (1, 1))))))


@pytest.mark.parametrize("placeholders", [0, 1, 3])
def test_placeholders_must_match_the_pictures(server, good_answer, placeholders: int) -> None:
    """Guards against a prompt whose text adds or hides placeholders; both numbers are said."""
    template = (TINY / "chat_template.jinja").read_text()
    written = "<|image|>" * placeholders
    template = template.replace("<|begin_of_image|><|image|><|end_of_image|>", "")
    text = f"{written}{QUESTION}"
    response = chat(server, text, printed(), printed(), chat_template=template)
    assert response.status_code == 400, response.text
    message = response.json()["error"]["message"]
    assert f"{placeholders} image placeholder(s)" in message
    assert "2 picture(s)" in message
    assert answer(chat(server, QUESTION, printed())) == good_answer


def test_a_prompt_that_is_too_long_after_expansion(server, good_answer) -> None:
    """Guards the count after expansion; the limit and the prompt's length are both said."""
    text = "7" * (MAX_MODEL_LEN - 10)
    fits = chat(server, text, max_tokens=1)
    assert answer(fits)  # without a picture
    expansion = chat(server, "", printed(), max_tokens=1).json()["usage"]["prompt_tokens"]
    expansion -= chat(server, "", max_tokens=1).json()["usage"]["prompt_tokens"]
    length = fits.json()["usage"]["prompt_tokens"] + expansion
    response = chat(server, text, printed(), max_tokens=1)
    assert response.status_code == 400, response.text
    numbers = [int(number) for number in re.findall(r"\d+", response.json()["error"]["message"])]
    assert {MAX_MODEL_LEN, length} <= set(numbers), response.text
    assert answer(chat(server, QUESTION, printed())) == good_answer


def test_too_many_pictures(server) -> None:
    """Guards --limit-mm-per-prompt."""
    response = chat(server, QUESTION, *[printed()] * 4)
    assert response.status_code == 400, response.text
    assert "At most 3 image(s)" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_pixels": 10}, "max_pixels=10, less than"),
        ({"min_pixels": -1}, "min_pixels=-1"),
        ({"sharpness": 3}, "sharpness"),
        ({"max_pixels": 1 << 40}, "this server was started for"),
    ],
)
def test_bad_picture_settings(server, settings: dict[str, int], reason: str) -> None:
    """Guards the settings of one request."""
    response = chat(server, QUESTION, printed(), mm_processor_kwargs=settings)
    assert response.status_code == 400, response.text
    assert reason in response.json()["error"]["message"]


def test_streaming_gives_the_same_answer(server, good_answer) -> None:
    """Guards streaming with a picture."""
    body = request(QUESTION, printed()) | {"stream": True}
    with server.stream("POST", "/v1/chat/completions", json=body) as response:
        events = [line[6:] for line in response.iter_lines() if line.startswith("data: {")]
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    assert len(deltas) > 3
    assert "".join(delta.get("content") or "" for delta in deltas) == good_answer


# --- videos ---

CLIP = "numbers.mp4"
FIRST = "Which number comes first?"


def clip_answers() -> dict[str, str]:
    return json.loads((VIDEOS / "answers.json").read_text())[CLIP]


@pytest.mark.parametrize("form", ["base64", "file"])
def test_the_numbers_in_a_clip_are_read(server, form: str) -> None:
    """Guards videos by URL, and that time is seen: the first number, and one at a second."""
    path, answers = VIDEOS / CLIP, clip_answers()
    url = path.as_uri() if form == "file" else video_uri(path.read_bytes())
    second = next(key for key in answers if key.isdigit() and key != "0")
    for question, key in ((FIRST, "first"), (f"Which number is shown at second {second}?", second)):
        assert f"<answer>{answers[key]}</answer>" in answer(chat(server, question, url))


def test_videos_and_pictures_together(server) -> None:
    """Guards a mix, which the model was not trained on and which vLLM serves."""
    url = video_uri((VIDEOS / CLIP).read_bytes())
    assert answer(chat(server, QUESTION, url, printed(), url))


BAD_VIDEOS = {
    "text": (lambda: video_uri(b"this is a text file, not a video"), {}, "cannot be decoded"),
    "empty": (lambda: video_uri(b""), {}, "cannot be decoded"),
    "audio": (lambda: video_uri(audio_only()), {}, "cannot be decoded"),
    "truncated": (lambda: video_uri(Clip(10, 40).encode()[:-800]), {}, "cannot be decoded"),
    "outside": (lambda: Path("/etc/hostname").as_uri(), {}, "There is no file"),
    "rate": (lambda: video_uri(Clip(10, 9).encode()), {"fps": 0}, "fps=0; expected"),
    "negative": (lambda: video_uri(Clip(10, 9).encode()), {"fps": -1}, "fps=-1; expected"),
    "many": (lambda: video_uri(Clip(10, 9).encode()), {"num_frames": 9999}, "at most 600 frames"),
}


@pytest.mark.parametrize("kind", BAD_VIDEOS)
def test_a_bad_video_is_the_callers_error(server, good_answer, kind: str) -> None:
    """Guards against a 500, a hang or a dead engine; the next request is answered as before."""
    make, settings, reason = BAD_VIDEOS[kind]
    response = chat(server, FIRST, make(), mm_processor_kwargs=settings)
    assert response.status_code == 400, response.text
    assert reason in response.json()["error"]["message"]
    assert answer(chat(server, QUESTION, printed())) == good_answer


def test_settings_of_one_video(server) -> None:
    """Guards fps, num_frames and max_frames of a request, by either of vLLM's two ways."""
    url = video_uri((VIDEOS / CLIP).read_bytes())

    def length(**options: Any) -> int:
        response = chat(server, FIRST, url, max_tokens=1, **options)
        assert response.status_code == 200, response.text
        return response.json()["usage"]["prompt_tokens"]

    plain = length()
    for settings in ({"fps": 1}, {"num_frames": 2}, {"max_frames": 2}):
        shorter = length(mm_processor_kwargs=settings)
        assert shorter < plain
        assert length(media_io_kwargs={"video": settings}) == shorter


def test_the_log_says_nothing_of_what_is_asked(server, log: Path) -> None:
    """By vLLM's defaults, of good and bad requests."""
    secret = "the moon is my password"
    assert answer(chat(server, secret, printed()))
    assert chat(server, secret, data_uri(secret.encode())).status_code == 400
    assert chat(server, secret, "http://127.0.0.1:1/my-password.png").status_code == 400
    written = log.read_text()
    assert "/v1/chat/completions" in written
    for content in (secret, "my-password", printed()[-40:], data_uri(secret.encode())[-20:]):
        assert content not in written


def test_the_planner_reads_the_metrics(server, good_answer, checkpoint) -> None:
    """Guards against metrics that `glm41v plan` does not find in the vLLM that is installed."""
    options = ["--model", str(checkpoint("tiny")), "--server", str(server.base_url), "--json"]
    result = CliRunner().invoke(app, ["plan", "--card", "910B4", *options])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["server"]["requests"] > 0
    assert 0 < found["server"]["share_of_floor"]["first_token"] < 1
    assert 0 < found["server"]["share_of_floor"]["token"] < 1
