# SPDX-License-Identifier: Apache-2.0
"""`vllm serve` on the tiny checkpoint: answers, and bad input that harms nobody else."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.end_to_end.bad_media import (
    BAD_PICTURES,
    BAD_VIDEOS,
    FIRST,
    QUESTION,
    png,
    printed,
    wrong_placeholders,
)
from tests.end_to_end.conftest import read, wait_for_reports
from tests.end_to_end.mindie import WRITTEN, generate, parts
from tests.end_to_end.servers import MAX_MODEL_LEN, VIDEOS, data_uri, request, video_uri
from tests.lane import ALL_LANES, BACKEND, EMULATED
from vllm_glm41v_npu.backends import ATLAS_310P
from vllm_glm41v_npu.cli import app

pytestmark = ALL_LANES


def chat(server: httpx.Client, text: str, *urls: str, **options: Any) -> httpx.Response:
    return server.post("/v1/chat/completions", json=request(text, *urls) | options)


def answer(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


@pytest.fixture
def good_answer(server: httpx.Client) -> str:
    return answer(chat(server, QUESTION, printed()))


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
    response = server.post("/v1/chat/completions", json=wrong_placeholders(placeholders))
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


@pytest.mark.parametrize(
    "settings",
    [
        {"min_pixels": 28 * 28, "max_pixels": 56 * 56},
        {"size": {"shortest_edge": 28 * 28, "longest_edge": 2 * 56 * 56}},
    ],
)
def test_pixel_limits_of_a_request(server, settings: dict[str, Any]) -> None:
    """Guards limits that are accepted and change nothing: a smaller picture has fewer tokens."""
    picture = data_uri(png(Image.new("RGB", (336, 336))))

    def length(**options: Any) -> int:
        response = chat(server, "", picture, max_tokens=1, **options)
        assert response.status_code == 200, response.text
        return response.json()["usage"]["prompt_tokens"]

    # A token is 28 x 28 pixels; the checkpoint's own limit is 112 x 112.
    assert length() - length(mm_processor_kwargs=settings) == 4 * 4 - 2 * 2


@pytest.mark.skipif(
    BACKEND is not ATLAS_310P, reason="test_mindie_server.py has a server of its own here"
)
@pytest.mark.parametrize("stream", [False, True])
def test_mindies_route(server, stream: bool) -> None:
    """Guards /generate on the chip that runs no more of test_mindie_server.py."""
    response = generate(server, parts(QUESTION, printed()), model="tiny", stream=stream)
    assert response.status_code == 200, response.text
    if not stream:
        assert response.json() == {"text": [f"{QUESTION} {WRITTEN}"]}
        return
    *frames, end = response.content.split(b"\0")
    assert end == b""
    assert "".join(json.loads(frame)["text"][0] for frame in frames) == WRITTEN


@pytest.mark.skipif(not EMULATED, reason="the operators of a CPU or a real NPU are not recorded")
def test_the_server_reports_its_operators(good_answer: str, shared_reports: Path) -> None:
    """Guards against an empty folder of reports, in which no refused call would be seen."""
    wait_for_reports()
    called = [report["calls"] for report in read(shared_reports)]
    assert any(name.startswith("npu::") for calls in called for name in calls), called


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


@pytest.mark.parametrize("kind", BAD_VIDEOS)
def test_a_bad_video_is_the_callers_error(server, good_answer, kind: str) -> None:
    """Guards against a 500, a hang or a dead engine; the next request is answered as before."""
    make, settings, reason = BAD_VIDEOS[kind]
    response = chat(server, FIRST, make(), mm_processor_kwargs=settings)
    assert response.status_code == 400, response.text
    assert reason in response.json()["error"]["message"]
    assert answer(chat(server, QUESTION, printed())) == good_answer


@pytest.mark.parametrize("backend", ["opencv", "pyav"])
def test_bad_videos_are_refused_by_every_route(server, log: Path, backend: str) -> None:
    """Guards against a traceback in the log, a route that answers 500, a port that is bound."""
    kwargs = {"media_io_kwargs": {"video": {"backend": backend}}}
    before = log.stat().st_size
    for kind in ("stream", "playlist", "truncated", "audio"):
        body = request(FIRST, BAD_VIDEOS[kind][0]()) | kwargs
        for route in ("/v1/chat/completions", "/tokenize", "/v1/chat/completions/render"):
            response = server.post(route, json=body)
            assert response.status_code == 400, (route, response.text)
            assert "cannot be decoded" in response.json()["error"]["message"]
    assert b"Traceback" not in log.read_bytes()[before:]


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
