# SPDX-License-Identifier: Apache-2.0
"""Sentences about what pydantic finds wrong with a body."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, ValidationError, model_validator

from vllm_glm41v_npu.serving.chat_request import prepare
from vllm_glm41v_npu.serving.field_errors import sentences


class Point(BaseModel):
    x: int
    of: list[int | str] = []


class Body(BaseModel):
    """A body with fields of several kinds."""

    size: float
    point: Point | None = None
    either: int | list[int] = 0
    points: list[Point] = []

    @model_validator(mode="before")
    @classmethod
    def check(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("size") == 13:
            raise ValueError("13 brings bad luck.")
        return data


CASES = {
    "missing": ({}, "size is missing."),
    "no number": ({"size": "a"}, "size is 'a': input should be a valid number, unable to parse"),
    "within": ({"size": 1, "point": {"x": "a"}}, "point.x is 'a': input should be a valid integer"),
    "missing within": ({"size": 1, "points": [{"x": 1}, {}]}, "points[1].x is missing."),
    "a union": ({"size": 1, "either": "a"}, "either is 'a': input should be a valid integer, "),
    "in a list": ({"size": 1, "point": {"x": 1, "of": [1, None]}}, "point.of[1] is None: input"),
    "our own words": ({"size": 13}, "13 brings bad luck."),
    "two": (
        {"size": "a", "either": "b"},
        "string as a number. either is 'b'",
    ),
    "a long value": ({"size": "a" * 9999}, "size is 'aaaaaa"),
}


@pytest.mark.parametrize("name", CASES)
def test_sentences(name: str) -> None:
    """Guards which field it is, what was found and what was expected; and nothing of types."""
    body, expected = CASES[name]
    with pytest.raises(ValidationError) as refusal:
        Body.model_validate(body)
    errors = [{**error, "loc": ("body", *error["loc"])} for error in refusal.value.errors()]
    for found in (sentences(errors, body), sentences(refusal.value.errors())):
        assert len(found) < 300
        assert "\n" not in found
    assert expected in sentences(errors, body)


def test_broken_json() -> None:
    """Guards what FastAPI says about a body that is no JSON, and vLLM's own errors."""
    app = FastAPI()

    @app.post("/")
    def route(body: Body) -> None: ...

    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import PlainTextResponse

    app.exception_handler(RequestValidationError)(
        lambda _, error: PlainTextResponse(sentences(error.errors(), error.body), 400)
    )
    client = TestClient(app)
    headers = {"Content-Type": "application/json"}
    found = client.post("/", content=b'{"size": ', headers=headers).text
    assert found == "The body is no JSON: Expecting value at character 9."
    assert sentences(["Unsupported Media Type"]) == "Unsupported Media Type."


@pytest.mark.parametrize("name", ["bad_words", "stop"])
def test_words_are_few(name: str) -> None:
    """Guards the event loop, on which vLLM tokenizes 10,000 words in 11 s."""
    prepare("/v1/completions", {name: ["a"] * 256})
    with pytest.raises(ValueError, match=f"^{name} has 10,000 words; expected at most 256"):
        prepare("/v1/completions", {name: ["a"] * 10_000})
