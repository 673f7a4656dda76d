# SPDX-License-Identifier: Apache-2.0
"""`glm41v run`: many requests without a server, in the place of MindIE's run_pa.sh."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_glm41v_npu.checks import MICRO_BATCH
from vllm_glm41v_npu.cli.answering import answer_all as _answer_all
from vllm_glm41v_npu.cli.answering import check_outputs, report, write_table
from vllm_glm41v_npu.cli.start import (
    DecodingLength,
    DynamicDecoding,
    ParallelDecoding,
    SpeculativeConfig,
    fitted,
)
from vllm_glm41v_npu.cli.terminal import check_installed, echo, fail, one_line
from vllm_glm41v_npu.decoding import settings as decoding
from vllm_glm41v_npu.family import PUBLISHED_NAME
from vllm_glm41v_npu.offline.answers import Answer, AnswerFile, summary
from vllm_glm41v_npu.offline.sampling import check_sampling
from vllm_glm41v_npu.offline.tasks import Task, TaskError, find_tasks
from vllm_glm41v_npu.processing.media_files import kind_of

if TYPE_CHECKING:
    from vllm import LLM


class TooLongAction(str, Enum):
    """The ways to deal with a prompt that is too long."""

    refuse = "refuse"
    skip = "skip"


def run(
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(help="Pictures, videos, folders of them, JSONL files of requests."),
    ] = None,
    model: Annotated[str, typer.Option(help="A folder or a hub name.")] = PUBLISHED_NAME,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="The question; repeated, one a file, and the last for the rest."),
    ] = None,
    system: Annotated[str, typer.Option(help="The system's turn.")] = "",
    output: Annotated[Path | None, typer.Option(help="A JSONL for the answers.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with an output that is there.")] = False,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Requests computed at a time.")] = 16,
    max_input_length: Annotated[
        int, typer.Option(min=1, help="Tokens of a prompt, pictures and videos included.")
    ] = 8192,
    max_output_length: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 1024,
    too_long: Annotated[
        TooLongAction, typer.Option(help="What to do about a longer prompt.")
    ] = TooLongAction.refuse,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0,
    top_k: Annotated[int, typer.Option(min=-1, help="-1 and 0 are all tokens.")] = -1,
    repetition_penalty: Annotated[float, typer.Option(min=0.0)] = 1.0,
    seed: Annotated[int | None, typer.Option()] = None,
    chat_template: Annotated[
        Path | None, typer.Option(help="In place of the checkpoint's.", exists=True, dir_okay=False)
    ] = None,
    tensor_parallel_size: Annotated[int, typer.Option(min=1, help="Devices.")] = 1,
    kv_memory_gb: Annotated[
        int | None, typer.Option(min=1, help="For the KV cache of each device, in GiB.")
    ] = None,
    quantization: Annotated[str | None, typer.Option(help="As in vLLM.")] = None,
    dtype: Annotated[str, typer.Option(help="As in vLLM.")] = "auto",
    parallel_decoding: ParallelDecoding = None,
    decoding_length: DecodingLength = None,
    dynamic_decoding: DynamicDecoding = None,
    speculative_config: SpeculativeConfig = None,
    micro_batch: Annotated[
        bool, typer.Option(help="Cut large prefills in two, on several devices.")
    ] = False,
    engine: Annotated[
        str, typer.Option(help="Further arguments of vLLM's LLM, as a JSON object.")
    ] = "{}",
    trust_remote_code: Annotated[bool, typer.Option(help="Run code of the checkpoint.")] = False,
    mindie_csv: Annotated[
        Path | None, typer.Option(help="Times under the names of MindIE's benchmark.csv.")
    ] = None,
    quiet: Annotated[bool, typer.Option(help="Print no answers.")] = False,
) -> None:
    """Answer many requests about pictures and videos, or about text alone.

    A line of a JSONL is an object of `text`, `image`, `video` (a path from the file's folder, or
    several), `system`, `id` and sampling settings, or of `messages` in OpenAI's form. Exits with 2
    where an argument is wrong, with 1 where a request failed, the engine or the output, and with
    130 after Ctrl-C; what was answered is written in each case.
    """
    check_installed()
    sampling = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "max_tokens": max_output_length,
    }
    try:
        tasks = find_tasks(inputs or [], prompt or [], system, partial(echo, err=True))
        if not tasks:
            raise TaskError("Nothing is asked. Give files, folders, a JSONL, or --prompt.")
        if resume and not output:
            raise TaskError("--resume goes on with an --output, and none was given.")
        arguments = _engine_arguments(engine)
        drafts = decoding.speculative_config(
            parallel_decoding, decoding_length, dynamic_decoding, speculative_config
        )
        check_sampling(sampling)
        template = chat_template.read_text() if chat_template else None
        check_outputs(output, mindie_csv, inputs or [])
        answers = AnswerFile(output, resume) if output else None
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}." if error.strerror else str(error))
    except ValueError as error:
        fail(str(error))
    with closing(answers) if answers else nullcontext():
        left = _left(tasks, answers)
        if not left:
            return
        from vllm_glm41v_npu.offline.engine import Runner

        llm = _start(
            {
                "model": model,
                "max_num_seqs": max_batch_size,
                "max_model_len": max_input_length + max_output_length,
                "limit_mm_per_prompt": _most_media(left),
                "tensor_parallel_size": tensor_parallel_size,
                "kv_cache_memory_bytes": kv_memory_gb << 30 if kv_memory_gb else None,
                "quantization": quantization,
                "dtype": dtype,
                "trust_remote_code": trust_remote_code,
                "speculative_config": drafts,
                "disable_log_stats": False,  # it is what knows the times
            }
            | arguments
            | {
                "additional_config": {
                    MICRO_BATCH: micro_batch,
                    **arguments.get("additional_config", {}),
                }
            }
        )
        skips = too_long is TooLongAction.skip
        window, steps = 2 * max_batch_size, mindie_csv is not None
        runner = Runner(llm, window, sampling, max_input_length, skips, template, steps)
        started = time.perf_counter()
        given: list[Answer] = []
        try:
            _answer_all(runner, left, answers, quiet, given)
        finally:  # of a run that was ended, too
            report([*summary(given, time.perf_counter() - started), *runner.draft_rows()])
            if mindie_csv:
                write_table(mindie_csv, given, max_batch_size)
    if any(answer.error for answer in given):
        raise typer.Exit(1)


def _left(tasks: Sequence[Task], answers: AnswerFile | None) -> list[Task]:
    """Return the tasks that are not answered; end the command where none of them can be asked."""
    left = [task for task in tasks if answers is None or task.id not in answers.done]
    if len(left) < len(tasks):
        echo(f"{len(tasks) - len(left)} of {len(tasks)} are answered already.", err=True)
    wrong = [task for task in left if task.error]
    if wrong and len(wrong) == len(left):
        fail(f"No request can be asked. The first: {one_line(wrong[0].error)}")
    if wrong:  # before the engine takes its time
        echo(
            f"{len(wrong)} of {len(left)} requests are wrong, and become errors. The first: "
            f"{one_line(wrong[0].error)}",
            err=True,
        )
    return left


def _engine_arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise TaskError(f'--engine is {text!r}; expected a JSON object, such as {{"seed": 1}}.')
    return arguments


def _most_media(tasks: Sequence[Task]) -> dict[str, int]:
    """Return the most pictures and videos of a request; nothing where there are conversations."""
    if any(task.messages for task in tasks):
        return {}
    counts = [Counter(map(kind_of, task.files)) for task in tasks]
    return {kind: max(count[kind] for count in counts) for kind in ("image", "video")}


def _start(arguments: Mapping[str, Any]) -> LLM:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    from vllm import LLM

    from vllm_glm41v_npu.offline.engine import TooLong, check_length

    try:
        check_length(arguments)
        return LLM(**fitted(arguments))
    except TooLong as error:
        fail(str(error))
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        fail(f"{arguments['model']} could not be started: {error}", code=1)
