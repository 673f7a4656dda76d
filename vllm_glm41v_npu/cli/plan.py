# SPDX-License-Identifier: Apache-2.0
"""`glm41v plan`: the load that fits the cards, and the least times they can take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vllm_glm41v_npu.checkpoint.folder import Json
from vllm_glm41v_npu.cli.terminal import fail


def plan(
    card: Annotated[str, typer.Option(help="Such as 910B4 or 300I-DUO.")],
    type: Annotated[
        str, typer.Option(help="FP16, BF16, W8A8, W8A8_DYNAMIC, W8A8S or W8A8SC.")
    ] = "FP16",
    count: Annotated[int, typer.Option(min=1, help="Cards that share the model.")] = 1,
    model: Annotated[
        Path | None,
        typer.Option(help="A folder with another config.json than GLM-4.1V-9B-Thinking's."),
    ] = None,
    picture: Annotated[
        list[str] | None, typer.Option(help="Pixels, such as 1024x1024. Repeatable.")
    ] = None,
    text_tokens: Annotated[
        int | None, typer.Option(min=1, help="The prompt's other tokens; 31 if not given.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Sequences decoded together; 1 if not given.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of prompt and answer; an answer of 1024 if not given."),
    ] = None,
    memory_gb: Annotated[
        float | None,
        typer.Option(min=1.0, help="Of a chip, as npu-smi shows; the data sheet's if not given."),
    ] = None,
    gpu_memory_utilization: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="As in vLLM.")
    ] = 0.9,
    quantized_down_proj: Annotated[
        bool, typer.Option("--quantized-down-proj", help="It is quantized like the other layers.")
    ] = False,
    ratio: Annotated[
        float | None,
        typer.Option(min=0.01, max=1.0, help="What W8A8SC leaves, as `glm41v compress` prints."),
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="Compare with a running vLLM, such as http://HOST:8000.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="VLLM_API_KEY", help="The server's, if it asks for one.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.0, help="How long to look at the server; 0: since its start.")
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """Tell what fits the cards' memory, and the least times that the cards can take.

    With --server, what is not said of the load is taken from what the server measured. Exits with 1
    where the load does not fit or the server tells nothing, and with 2 where an argument is wrong.
    """
    from vllm_glm41v_npu.planning import live
    from vllm_glm41v_npu.planning.chips import Figure, find_card, find_type
    from vllm_glm41v_npu.planning.document import document
    from vllm_glm41v_npu.planning.load import Load
    from vllm_glm41v_npu.planning.model_size import Model
    from vllm_glm41v_npu.planning.roofline import COMPRESSED, Plan

    try:
        found = find_card(card)
        if memory_gb is not None:
            found = found._replace(memory=Figure(1e9 * memory_gb, "B", "--memory-gb"))
        cards = Plan(
            found,
            find_type(type, found),
            count,
            Model.read(model) if model else Model.published(),
            gpu_memory_utilization,
            quantized_down_proj,
            COMPRESSED if ratio is None else Figure(ratio, COMPRESSED.unit, "--ratio"),
        )
        measured = live.measure(server.rstrip("/"), seconds, api_key) if server else None
        load = Load.of(cards.model, picture or (), text_tokens, batch, context, measured)
    except live.ServerError as error:
        fail(str(error), code=1)
    except ValueError as error:
        fail(str(error))
    result = document(cards, load, measured)
    if as_json:
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        _print(result)
    raise typer.Exit(int(not result["memory"]["fits"]))


def _print(result: Json) -> None:
    from rich.console import Console

    from vllm_glm41v_npu.planning.tables import tables

    console = Console(markup=False, highlight=False)
    cards = f"{result['cards']} x {result['card']['product']}"
    console.print(f"{result['type']} on {cards}: {result['chips']} chip(s)")
    for table in tables(result):
        console.print(table)
    for note in result["notes"]:
        console.print(f"- {note}")
