# SPDX-License-Identifier: Apache-2.0
"""Requests of AISBench's client, which test_mindie_server.py sends to its server.

AISBench needs numpy 1 and a PyTorch of its own, so its command is not run here. The requests are
what AISBench 3.1.20260630 posts for the configurations of examples/aisbench, as a local server
saw them: an HTTP body of each task, with the fields of the configuration that is used.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock, patch

import httpx
import pytest

from examples.aisbench.run import NAME, TASKS, write_configs
from tests.end_to_end.mindie import NUMBER, PICTURE, QUESTION, THINKING
from tests.end_to_end.servers import data_uri

PACKAGES = (
    "ais_bench.benchmark.datasets",
    "ais_bench.benchmark.models",
    "ais_bench.benchmark.openicl.icl_inferencer",
    "ais_bench.benchmark.openicl.icl_prompt_template.icl_prompt_template_mm",
    "ais_bench.benchmark.openicl.icl_retriever",
    "ais_bench.benchmark.utils.postprocess.model_postprocessors",
)
SETTINGS = {"model": "", "port": 1, "at_once": 1, "questions": "", "suffix": ""}


def configuration(path: Path) -> dict[str, Any]:
    """The variables of a configuration; what it imports of AISBench is replaced by stand-ins."""
    stand_ins: dict[str, ModuleType] = {name: MagicMock() for name in PACKAGES}
    variables: dict[str, Any] = {}
    with patch.dict(sys.modules, stand_ins):
        exec(path.read_text(), variables)
    return variables


def request(task: str, folder: Path) -> dict[str, Any]:
    """The body that AISBench posts for one picture; it puts the template's picture first."""
    write_configs(folder, SETTINGS | {"name": NAME, "max_tokens": 64})
    path = folder / "models" / "vllm_api" / f"{TASKS[task][0]}.py"
    (model,) = configuration(path)["models"]
    prompt = configuration(folder / "datasets/textvqa/textvqa_gen_base64.py")["template"]
    given = prompt["round"][0]["prompt_mm"]
    picture = data_uri(PICTURE.read_bytes()).partition(",")[2]
    image = {"type": given["image"]["type"]}
    image["image_url"] = {"url": given["image"]["image_url"]["url"].format(image=picture)}
    text = given["text"] | {"text": given["text"]["text"].format(question=QUESTION)}
    body = {"stream": model["stream"], "messages": [{"role": "user", "content": [image, text]}]}
    if model["stream"]:
        body["stream_options"] = {"include_usage": True}
    return (
        body
        | model["generation_kwargs"]
        | {"max_tokens": model["max_out_len"], "model": model["model"]}
    )


@pytest.mark.parametrize("task", TASKS)
def test_aisbenchs_requests(server: httpx.Client, tmp_path: Path, task: str) -> None:
    """Guards the fields that AISBench reads: the thinking apart, the answer, the token counts."""
    response = server.post("/v1/chat/completions", json=request(task, tmp_path))
    assert response.status_code == 200, response.text
    if task == "accuracy":
        answers = [response.json()]
        messages = [choice["message"] for choice in answers[0]["choices"]]
    else:
        *events, done = [line[5:].strip() for line in response.text.splitlines() if line]
        assert done == "[DONE]"
        answers = [json.loads(event) for event in events]
        messages = [choice["delta"] for answer in answers for choice in answer["choices"]]
        assert len(messages) > 5
    written = {
        field: "".join(message.get(field) or "" for message in messages)
        for field in ("reasoning", "content")
    }
    assert written == {"reasoning": THINKING, "content": NUMBER}
    assert answers[-1]["usage"]["prompt_tokens"] > 5
    assert answers[-1]["usage"]["completion_tokens"] > 5
