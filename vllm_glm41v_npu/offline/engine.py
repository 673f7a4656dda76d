# SPDX-License-Identifier: Apache-2.0
"""Runs tasks through vLLM's engine: continuous batching, with only a few of them in memory."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Mapping
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NoReturn

from vllm_glm41v_npu.offline.answers import Answer, RunEnded
from vllm_glm41v_npu.offline.sampling import check_sampling
from vllm_glm41v_npu.offline.task import Task, TaskError

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput

DRAFTS = "vllm:spec_decode_num_"
"""The beginning of the names of vLLM's counters of parallel decoding."""

logger = logging.getLogger(f"vllm.{__name__}")


LONGEST_REASON = 1000
"""The most characters of an error; some quote the whole request, pictures in base64 too."""


class TooLong(RunEnded, ValueError):
    """A prompt has more tokens than allowed, or than the model takes, those of media included."""

    code = 2


def check_length(arguments: Mapping[str, Any]) -> None:
    """Check `max_model_len` of vLLM's LLM by the checkpoint's config, before anything starts.

    With scaled rope positions vLLM itself decides the most.

    Raises:
        TooLong: The model has fewer positions.
        OSError, ValueError: There is no checkpoint, or its config is wrong.
    """
    from transformers import AutoConfig

    from vllm_glm41v_npu.processing.hf_config import register_config

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

    def run(self, tasks: Iterable[Task]) -> Generator[Answer, None, None]:
        """Yield one answer for each task; any error of a task is its own answer.

        Raises:
            TooLong: A prompt is too long, and `skip_too_long` is not set.
            RunEnded: The engine has stopped, so nothing more can be answered.
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
                for output in self._step():
                    times: Any = output.metrics  # none without the engine's statistics
                    if self.times_steps and times:
                        self._steps.setdefault(output.request_id, []).append(times.last_token_ts)
                    if output.finished:
                        yield self._answer(output)
        finally:  # of a run that was ended, nothing stays in the engine
            self._abort(list(self._running))
            self._running.clear()
            self._steps.clear()

    def draft_rows(self) -> list[tuple[str, str]]:
        """Return rows of a table about accepted draft tokens; none where there were none."""
        if not self.engine.log_stats:
            return []
        counts = {metric.name: getattr(metric, "value", 0) for metric in self.llm.get_metrics()}
        drafted = counts.get(f"{DRAFTS}draft_tokens", 0)
        accepted = counts.get(f"{DRAFTS}accepted_tokens", 0)
        if not drafted:
            return []
        return [("draft tokens accepted", f"{accepted} of {drafted} ({accepted / drafted:.0%})")]

    def _step(self) -> list[Any]:
        try:
            return self.engine.step()
        except Exception as error:  # in this process, an engine raises whatever its parts do
            self._stopped(error)

    def _stopped(self, error: Exception) -> NoReturn:
        asked = ", ".join(task.id for task in self._running.values()) or "none"
        raise RunEnded(
            f"The engine stopped ({_named(error)}); its log says more. Requests that it had then: "
            f"{asked:.{LONGEST_REASON}}."
        ) from error

    def _abort(self, numbers: list[str]) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        with suppress(EngineDeadError):  # then it has none of them
            self.engine.abort_request(numbers)

    def _start(self, task: Task) -> Answer | None:
        """Hand a task to the engine; return its answer where the task is wrong."""
        from vllm.v1.engine.exceptions import EngineDeadError

        number = str(next(self.llm.request_counter))
        try:
            if task.error:
                raise TaskError(task.error)
            sampling = self._sampling(task)  # first, as pictures take longest
            self.engine.add_request(number, self._render(task), sampling)
        except EngineDeadError as error:
            self._stopped(error)
        except TooLong as error:
            if not self.skip_too_long:
                raise
            return Answer(task.id, error=str(error))
        except Exception as error:  # decoders, templates and checks raise nearly anything
            logger.debug("%r failed.", task.id, exc_info=error)
            self._abort([number])  # vLLM notes a request before it is sent
            return Answer(task.id, error=_reason(error))
        self._running[number] = task
        return None

    def _sampling(self, task: Task) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.FINAL_ONLY
        if self.times_steps:
            kind = RequestOutputKind.CUMULATIVE
        settings = {**self.sampling, **check_sampling(task.sampling)}
        return SamplingParams(**settings, output_kind=kind)

    def _render(self, task: Task) -> Any:
        """Return the prompt for the engine, its media processed."""
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
        if completion.finish_reason in ("error", "abort"):
            error = "The engine ended the request before it had an answer; its log says why."
            return Answer(task.id, error=error)
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


def _reason(error: Exception) -> str:
    """Return the fault of a request: the sentence for the caller, or the name of the error."""
    if isinstance(error, (ValueError, OSError)) and str(error):
        return _cut(str(error))
    return f"The request cannot be processed ({_named(error)})."


def _named(error: Exception) -> str:
    text = _cut(str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} ..."
