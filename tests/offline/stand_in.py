# SPDX-License-Identifier: Apache-2.0
"""An engine's stand-in: it answers every request in the next step, or raises what it is told to."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from vllm_glm41v_npu.offline.engine import Runner

LONGEST = 100
"""Tokens of a prompt that a runner here takes."""


class Engine:
    """The part of vLLM's LLMEngine that a runner uses.

    noted: numbers of the requests that it has.
    most: the most that it had at a time.
    metrics: of every answer.
    """

    log_stats = False

    def __init__(self) -> None:
        self.noted: list[str] = []
        self.most = 0
        self.metrics: Any = None
        self.refusal: Exception | None = None
        self.failure: Exception | None = None
        self.finish_reason = "stop"

    def add_request(self, number: str, prompt: Any, sampling: Any) -> None:
        self.noted.append(number)  # before it is sent, as vLLM does
        self.most = max(self.most, len(self.noted))
        if self.refusal:
            raise self.refusal

    def step(self) -> list[Any]:
        if self.failure:
            raise self.failure
        completion = SimpleNamespace(
            text="answer", finish_reason=self.finish_reason, token_ids=[1, 2]
        )
        return [
            SimpleNamespace(
                request_id=self.noted.pop(0),
                metrics=self.metrics,
                finished=True,
                outputs=[completion],
                prompt_token_ids=[1],
            )
        ]

    def abort_request(self, numbers: list[str]) -> None:
        self.noted = [number for number in self.noted if number not in numbers]


def runner(
    engine: Engine, render: Callable[[list[Any]], None] = lambda talk: None, **options: Any
) -> Runner:
    """A runner of two requests at a time on a stand-in, see `llm`."""
    return Runner(llm(engine, render), 2, {"max_tokens": 4}, LONGEST, **options)


def llm(engine: Engine, render: Callable[[list[Any]], None] = lambda talk: None) -> Any:
    """The part of vLLM's LLM that a runner uses.

    A prompt has as many tokens as its last text has words.

    Args:
        render: Called with each conversation, where pictures are loaded.
    """

    def render_chat(talks: list[list[Any]], chat: Any) -> tuple[None, list[Any]]:
        render(talks[0])
        words = str(talks[0][-1]["content"][-1].get("text", "")).split()
        return None, [{"prompt_token_ids": [1] * len(words)}]

    return SimpleNamespace(
        llm_engine=engine,
        renderer=SimpleNamespace(render_chat=render_chat),
        request_counter=itertools.count(),
    )
