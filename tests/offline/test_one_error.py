# SPDX-License-Identifier: Apache-2.0
"""One bad request of a run is one error, whatever is raised; an engine that stops ends the run."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
from PIL import Image
from vllm.v1.engine.exceptions import EngineDeadError

from tests.checkpoints import TINY
from tests.offline.mixed_files import broken_png
from tests.offline.stand_in import LONGEST, Engine, runner
from vllm_glm41v_npu.offline.answers import Answer, RunEnded
from vllm_glm41v_npu.offline.engine import LONGEST_REASON, TooLong
from vllm_glm41v_npu.offline.tasks import Task
from vllm_glm41v_npu.processing.connector import Glm41vMediaConnector

FIRST, BAD, LAST = Task("first", "a"), Task("bad", "bad"), Task("last", "b")

ERRORS = (
    *(SyntaxError("broken PNG file"), AttributeError("mode"), NotImplementedError()),
    *(KeyError("role"), MemoryError(), RecursionError("too deep"), OverflowError("int too big")),
    *(RuntimeError("decoder"), struct.error("short"), zlib.error("-3"), AssertionError("no")),
    *(Image.DecompressionBombError("large"), jinja2.TemplateError("roles"), StopIteration()),
    *(UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates"), IndexError(), Exception("any")),
)


def check_one_error(answers: list[Answer], engine: Engine) -> str:
    """The error; the others are answered, and the engine has nothing left."""
    found = {answer.id: answer for answer in answers}
    assert len(answers) == 3
    assert (found["first"].answer, found["last"].answer) == ("answer", "answer")
    assert found["bad"].answer is None and engine.noted == []
    return found["bad"].error or ""


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["render", "add"])
def test_whatever_is_raised(error: Exception, where: str) -> None:
    """Guards an error that ends the run, says nothing, or stays noted in the engine for ever."""
    engine = Engine()

    def render(talk: list[Any]) -> None:
        bad = talk[0]["content"][0]["text"] == "bad"
        if bad and where == "render":
            raise error
        engine.refusal = error if bad else None

    reason = check_one_error(list(runner(engine, render).run([FIRST, BAD, LAST])), engine)
    assert reason == str(error) or f"processed ({type(error).__name__}" in reason


def test_a_broken_picture(tmp_path: Path) -> None:
    """Guards what Pillow raises, through the loader that the engine uses."""
    connector, engine = Glm41vMediaConnector(), Engine()

    def render(talk: list[Any]) -> None:
        for part in talk[0]["content"]:
            if part["type"] == "image_url":
                connector.fetch_image(part["image_url"]["url"])

    (tmp_path / "broken.png").write_bytes(broken_png())
    good = TINY.parent / "pictures" / "printed.png"
    names = {"first": good, "bad": tmp_path / "broken.png", "last": good}
    tasks = [Task(name, files=(path,)) for name, path in names.items()]
    assert check_one_error(list(runner(engine, render).run(tasks)), engine)


@pytest.mark.parametrize(
    "sampling",
    [{"seed": "a"}, {"seed": 2**70}, {"max_tokens": 0}, {"stop": [5]}, {"n": 2}],
    ids=str,
)
def test_settings_that_the_engine_cannot_read(sampling: dict[str, Any]) -> None:
    """Guards an engine's process that hangs at a type, for tasks that no line was made of."""
    engine = Engine()
    rendered: list[Any] = []
    bad = Task("bad", "bad", sampling=sampling)
    answers = list(runner(engine, rendered.append).run([FIRST, bad, LAST]))
    assert "expected" in check_one_error(answers, engine)
    assert len(rendered) == 2  # pictures are not loaded for nothing


def test_a_line_that_was_wrong_is_not_asked() -> None:
    engine = Engine()
    answers = list(runner(engine).run([FIRST, Task("bad", error="wrong"), LAST]))
    assert check_one_error(answers, engine) == "wrong"


def test_a_long_reason_is_cut() -> None:
    """Guards errors that repeat a picture in base64."""

    def render(talk: list[Any]) -> None:
        raise ValueError("x" * 1_000_000)

    (answer,) = runner(Engine(), render).run([BAD])
    assert len(answer.error or "") < LONGEST_REASON + 10


@pytest.mark.parametrize("finish_reason", ["error", "abort"])
def test_a_request_that_the_engine_ended_is_an_error(finish_reason: str) -> None:
    """Guards an empty answer that looks like one."""
    engine = Engine()
    engine.finish_reason = finish_reason
    (answer,) = runner(engine).run([FIRST])
    assert answer.answer is None and "its log says why" in (answer.error or "")


@pytest.mark.parametrize("failure", [EngineDeadError(), RuntimeError("out of memory")])
def test_an_engine_that_stops(failure: Exception) -> None:
    """Guards a run that goes on without an engine, and a traceback in place of what it had."""
    engine = Engine()
    answers = runner(engine).run([FIRST, BAD, LAST])
    assert next(answers).id == "first"
    engine.failure = failure
    with pytest.raises(RunEnded, match=r"The engine stopped \(.*had then: bad, last\."):
        next(answers)


def test_an_engine_that_is_dead_already() -> None:
    engine = Engine()
    engine.refusal = EngineDeadError()
    with pytest.raises(RunEnded, match="The engine stopped"):
        list(runner(engine).run([FIRST]))


def test_a_run_that_is_ended_leaves_nothing() -> None:
    """Guards an engine that goes on with requests whose answers nobody reads."""
    engine = Engine()
    answers = runner(engine).run([FIRST, BAD, LAST])
    next(answers)
    assert engine.noted
    answers.close()
    assert engine.noted == []


def test_no_more_requests_than_the_window() -> None:
    """Guards memory: a task's pictures are read when it is handed over."""
    engine = Engine()
    assert len(list(runner(engine).run([FIRST, BAD, LAST]))) == 3
    assert engine.most == 2


def test_the_longest_prompt() -> None:
    """Guards a limit that is off by one."""
    (answer,) = runner(Engine()).run([Task("a", "word " * LONGEST)])
    assert answer.error is None
    with pytest.raises(TooLong, match=f"has {LONGEST + 1} tokens"):
        list(runner(Engine()).run([Task("a", "word " * (LONGEST + 1))]))


def test_times_are_from_when_the_engine_had_it() -> None:
    """Guards times without the wait for a place, which a user waits too."""
    engine = Engine()
    engine.metrics = SimpleNamespace(queued_ts=10.0, first_token_ts=11.5, last_token_ts=14.0)
    (answer,) = runner(engine).run([FIRST])
    assert (answer.first_seconds, answer.seconds) == (1.5, 4.0)
    assert answer.token_seconds == 2.5
