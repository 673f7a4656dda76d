# SPDX-License-Identifier: Apache-2.0
"""Tasks through vLLM's engine: continuous batching, and only a few of them in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from vllm_glm41v_npu.offline.answers import Answer
from vllm_glm41v_npu.offline.tasks import Task

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput

GUESSES = "vllm:spec_decode_num_"
"""How the names of vLLM's counters of parallel decoding begin."""

logger = logging.getLogger(f"vllm.{__name__}")


class TooLong(ValueError):
    """More tokens than are allowed, or than the model takes; pictures and videos included."""


def check_length(arguments: Mapping[str, Any]) -> None:
    """Hold `max_model_len` of vLLM's LLM against the checkpoint's config, before anything starts.

    With scaled rope positions the most is vLLM's to say.

    Raises:
        TooLong: The model has fewer positions.
        OSError, ValueError: There is no checkpoint, or its config is wrong.
    """
    from transformers import AutoConfig

    from vllm_glm41v_npu.config import register_config

    register_config()
    trusts = arguments["trust_remote_code"]
    config = AutoConfig.from_pretrained(arguments["model"], trust_remote_code=trusts)
    text = config.get_text_config()
    most, length = text.max_position_embeddings, arguments["max_model_len"]
    if text.rope_parameters["rope_type"] == "default" and length > most:
        raise TooLong(
            f"--max-input-length and --max-output-length are {length} tokens together, and the "
            f"model takes {most}. Lower one of them."
        )


class Runner:
    """Answers tasks in the order in which they are done.

    Args:
        llm: The engine; with `disable_log_stats=False`, or no times are known.
        window: Tasks that are read and not yet answered, at most: a batch and a reserve, so that
            the engine never waits for a file.
        sampling: Of vLLM's SamplingParams, for tasks that do not say otherwise.
        max_input_length: Tokens of a prompt, pictures and videos included.
        skip_too_long: Whether a longer one is an error among answers, or ends the run.
        chat_template: In place of the checkpoint's.
        times_steps: Whether answers tell the time of each step.
    """

    def __init__(
        self,
        llm: LLM,
        window: int,
        sampling: Mapping[str, Any],
        max_input_length: int,
        skip_too_long: bool = False,
        chat_template: str | None = None,
        times_steps: bool = False,
    ) -> None:
        self.llm, self.engine = llm, llm.llm_engine
        self.window = window
        self.sampling = sampling
        self.max_input_length = max_input_length
        self.skip_too_long = skip_too_long
        self.chat_template = chat_template
        self.times_steps = times_steps
        self._running: dict[str, Task] = {}
        self._steps: dict[str, list[float]] = {}

    def run(self, tasks: Iterable[Task]) -> Iterator[Answer]:
        """One answer for each task.

        Raises:
            TooLong: A prompt is, and `skip_too_long` is not set.
        """
        waiting = iter(tasks)
        try:
            while True:
                while len(self._running) < self.window and (task := next(waiting, None)):
                    failure = self._start(task)
                    if failure is not None:
                        yield failure
                if not self._running:
                    return
                for output in self.engine.step():
                    times: Any = output.metrics  # none without the engine's statistics
                    if self.times_steps and times:
                        self._steps.setdefault(output.request_id, []).append(times.last_token_ts)
                    if output.finished:
                        yield self._answer(output)
        finally:  # of a run that was ended, nothing stays in the engine
            self.engine.abort_request(list(self._running))
            self._running.clear()
            self._steps.clear()

    def guesses(self) -> list[tuple[str, str]]:
        """How parallel decoding went, as rows of a table; none without it, or without guesses."""
        if not self.engine.log_stats:
            return []
        counts = {metric.name: getattr(metric, "value", 0) for metric in self.llm.get_metrics()}
        guessed = counts.get(f"{GUESSES}draft_tokens", 0)
        right = counts.get(f"{GUESSES}accepted_tokens", 0)
        if not guessed:
            return []
        return [("tokens guessed right", f"{right} of {guessed} ({right / guessed:.0%})")]

    def _start(self, task: Task) -> Answer | None:
        """Hand a task to the engine; what is wrong with it becomes its answer."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        number = str(next(self.llm.request_counter))
        try:
            prompt = self._render(task)
            kind = RequestOutputKind.FINAL_ONLY
            if self.times_steps:
                kind = RequestOutputKind.CUMULATIVE
            sampling = SamplingParams(**{**self.sampling, **task.sampling}, output_kind=kind)
            self.engine.add_request(number, prompt, sampling)
        except TooLong as error:
            if not self.skip_too_long:
                raise
            return Answer(task.id, error=str(error))
        except (ValueError, TypeError, OSError) as error:  # a bad file, a bad setting
            logger.debug("%s failed.", task.id, exc_info=error)
            return Answer(task.id, error=str(error))
        self._running[number] = task
        return None

    def _render(self, task: Task) -> Any:
        """The prompt for the engine, its media processed."""
        from vllm.renderers import ChatParams

        kwargs = {"add_generation_prompt": True, "continue_final_message": False, "tokenize": False}
        chat = ChatParams(chat_template=self.chat_template, chat_template_kwargs=kwargs)
        _, (prompt,) = self.llm.renderer.render_chat([task.conversation()], chat)
        length = len(prompt["prompt_token_ids"])
        if length > self.max_input_length:
            raise TooLong(
                f"{task.id} has {length} tokens, its pictures and videos included, and "
                f"--max-input-length is {self.max_input_length}. Raise it, give smaller files, or "
                "leave out what is longer by --too-long skip."
            )
        return prompt

    def _answer(self, output: RequestOutput) -> Answer:
        task = self._running.pop(output.request_id)
        (completion,) = output.outputs
        times: Any = output.metrics
        steps = self._steps.pop(output.request_id, [])
        return Answer(
            task.id,
            answer=completion.text,
            finish_reason=completion.finish_reason,
            input_tokens=len(output.prompt_token_ids or ()),
            output_tokens=len(completion.token_ids),
            seconds=times.last_token_ts - times.queued_ts if times else 0.0,
            first_seconds=times.first_token_ts - times.queued_ts if times else 0.0,
            step_seconds=tuple(after - before for before, after in pairwise(steps)),
        )
