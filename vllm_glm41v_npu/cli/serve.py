# SPDX-License-Identifier: Apache-2.0
"""`glm41v serve`: `vllm serve` with the settings of MindIE's server."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from shutil import which
from typing import Annotated, Any, NoReturn

import typer

from vllm_glm41v_npu.cli.start import (
    DecodingLength,
    DynamicDecoding,
    ParallelDecoding,
    PortTaken,
    SpeculativeConfig,
    check_port,
    with_kv_cache,
)
from vllm_glm41v_npu.cli.terminal import fail
from vllm_glm41v_npu.decoding import settings as decoding
from vllm_glm41v_npu.planning.kv_cache import NoRoom
from vllm_glm41v_npu.serving.command import Settings, SettingsError
from vllm_glm41v_npu.serving.mindie.config import read_config


def serve(
    model: Annotated[str | None, typer.Argument(help="A folder or a hub name.")] = None,
    extra: Annotated[
        list[str] | None, typer.Argument(help="After --: options of `vllm serve`, as they are.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A config.json of MindIE; options given here come first.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What requests call the model.")] = None,
    host: Annotated[str | None, typer.Option(help="127.0.0.1 if not given.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="8000 if not given.")] = None,
    device_ids: Annotated[str | None, typer.Option(help="NPUs to use, such as 0,1.")] = None,
    world_size: Annotated[int | None, typer.Option(min=1, help="How many NPUs: 1 or 2.")] = None,
    max_seq_len: Annotated[
        int | None, typer.Option(min=1, help="The most tokens of prompt and answer together.")
    ] = None,
    max_input_len: Annotated[
        int | None, typer.Option(min=1, help="MindIE's; vLLM has no limit of the prompt alone.")
    ] = None,
    truncation: Annotated[
        bool | None, typer.Option(help="Cut prompts that are too long: only requests can ask it.")
    ] = None,
    kv_memory_gb: Annotated[
        int | None, typer.Option(min=1, help="For the KV cache of each device, in GiB.")
    ] = None,
    trust_remote_code: Annotated[
        bool | None, typer.Option(help="Run Python code of the model's folder; off if not given.")
    ] = None,
    parallel_decoding: ParallelDecoding = None,
    decoding_length: DecodingLength = None,
    dynamic_decoding: DynamicDecoding = None,
    speculative_config: SpeculativeConfig = None,
    micro_batch: Annotated[
        bool | None,
        typer.Option(
            help="On 2 NPUs, compute one half of a large prefill during the other's all-reduce."
        ),
    ] = None,
    reasoning: Annotated[
        bool, typer.Option(help="Take answers apart into reasoning and content.")
    ] = True,
    mindie_routes: Annotated[
        bool | None, typer.Option(help="Answer /generate; the default with --config.")
    ] = None,
    guard: Annotated[
        bool,
        typer.Option(help="Ask for the API key on every route but /health, and limit bodies."),
    ] = True,
    shutdown_timeout: Annotated[
        int, typer.Option(min=0, help="Seconds in which requests end once the server has to.")
    ] = 60,
    dry_run: Annotated[bool, typer.Option(help="Print the command and stop.")] = False,
) -> None:
    """Print the `vllm serve` command for these settings, and run it.

    Exits with 2 where a setting is wrong, and with 1 where vLLM is missing, the port is in use, or
    the model does not fit a CPU's memory.
    """
    words = extra or []
    if model and model.startswith("-"):  # no model before the --
        words = [model, *words]
        model = None
    given: dict[str, Any] = {
        "model": model,
        "name": name,
        "host": host,
        "port": port,
        "device_ids": _ids(device_ids),
        "world_size": world_size,
        "max_seq_len": max_seq_len,
        "max_input_len": max_input_len,
        "kv_memory_gb": kv_memory_gb,
        "truncation": truncation,
        "trust_remote_code": trust_remote_code,
        "micro_batch": micro_batch,
        "mindie_routes": config is not None if mindie_routes is None else mindie_routes,
        "reasoning": reasoning,
        "guard": guard,
        "shutdown_seconds": shutdown_timeout,
        "extra": tuple(words),
    }
    try:
        given["speculative_config"] = decoding.speculative_config(
            parallel_decoding, decoding_length, dynamic_decoding, speculative_config
        )
        settings = _settings(
            {key: value for key, value in given.items() if value is not None}, config
        )
        notes = settings.check()
        settings, note = _with_memory(settings, dry_run)
    except (SettingsError, decoding.DecodingError) as error:
        fail(str(error))
    if not dry_run:
        _check_port(settings)
    for sentence in (*notes, note):
        if sentence:
            typer.echo(f"Note: {sentence}", err=True)
    typer.echo(settings.line())
    if not dry_run:
        _run(settings)


def _check_port(settings: Settings) -> None:
    try:
        check_port(settings)
    except PortTaken as taken:
        fail(str(taken), code=1)


def _with_memory(settings: Settings, dry_run: bool) -> tuple[Settings, str | None]:
    """Return the settings and a note; a command that is only printed may be for another machine."""
    try:
        return with_kv_cache(settings)
    except NoRoom as no_room:
        if not dry_run:
            fail(str(no_room), code=1)
        return settings, f"On this machine: {no_room}"


def _settings(given: dict[str, Any], config: Path | None) -> Settings:
    fields: dict[str, Any] = {}
    if config:
        fields, lines = read_config(config)
        for line in lines:
            typer.echo(line, err=True)
    fields |= given
    if "model" not in fields:
        raise SettingsError("There is no model to serve; name its folder, or a config with one.")
    return Settings(**fields)


def _ids(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    numbers = [number.strip() for number in text.split(",")]
    if not all(number.isascii() and number.isdecimal() for number in numbers):
        fail(f"--device-ids is {text!r}; expected numbers such as 0,1.")
    return tuple(map(int, numbers))


def _run(settings: Settings) -> NoReturn:
    """Run the server in place of this process."""
    beside = str(Path(sys.executable).parent)
    program = which("vllm", path=os.pathsep.join((beside, os.environ.get("PATH", ""))))
    if program is None:
        fail("The command vllm is not installed; install it as README.md describes.", code=1)
    sys.stdout.flush()
    os.execve(program, settings.command(), os.environ | settings.environment())
