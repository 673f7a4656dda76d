# SPDX-License-Identifier: Apache-2.0
"""The load of the cards: prompts with pictures, their number at a time, their length."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from vllm_glm41v_npu.planning.chips import PlanError
from vllm_glm41v_npu.planning.live import Measured
from vllm_glm41v_npu.planning.model_size import Model, Picture

TEXT_TOKENS = 31
"""Tokens of a short question, its template and the marks around a picture."""

ANSWER_TOKENS = 1024


@dataclass(frozen=True)
class Load:
    """A load of the cards.

    pictures: of one prompt.
    text_tokens: the prompt's other tokens, with its template and the marks around pictures.
    batch: sequences that are decoded together.
    context: tokens of each sequence, prompt and answer.
    """

    pictures: Sequence[Picture]
    text_tokens: float
    batch: float
    context: float

    @property
    def prompt_tokens(self) -> float:
        return self.text_tokens + sum(picture.tokens for picture in self.pictures)

    @classmethod
    def of(
        cls,
        model: Model,
        sizes: Iterable[str] = (),
        text_tokens: float | None = None,
        batch: float | None = None,
        context: float | None = None,
        measured: Measured | None = None,
    ) -> Load:
        """Return the load by what is given (pictures as WIDTHxHEIGHT), else measured, else default.

        Raises:
            ValueError: A picture is none, or the numbers do not go together.
        """
        pictures = [model.picture(*_pixels(size)) for size in sizes]
        answer: float = ANSWER_TOKENS
        if measured:
            shown = sum(picture.tokens for picture in pictures)
            text_tokens = text_tokens or measured.prompt_tokens - shown
            batch = batch or measured.batch
            answer = measured.answer_tokens / 2  # an answer is half there on average
        load = cls(pictures, text_tokens or TEXT_TOKENS, batch or 1, context or 0)
        if not context:
            load = replace(load, context=load.prompt_tokens + answer)
        load._check(model.text.max_position_embeddings)
        return load

    def _check(self, most: int) -> None:
        if self.text_tokens < 0:
            raise PlanError(
                f"The server's prompts have {self.prompt_tokens:,.0f} tokens on average, fewer "
                "than these pictures alone. Give the pictures of its prompts."
            )
        if not self.prompt_tokens <= self.context <= most:
            raise PlanError(
                f"A context of {self.context:,.0f} tokens does not do: the prompt has "
                f"{self.prompt_tokens:,.0f}, and the model takes {most:,}."
            )


def _pixels(size: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", size)
    if match is None:
        raise PlanError(f"The picture {size!r} is no size; expected pixels such as 1920x1080.")
    return int(match[1]), int(match[2])
