# SPDX-License-Identifier: Apache-2.0
"""The document of a plan as tables, for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table

from vllm_glm41v_npu.checkpoint.folder import Json

SMALL = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"))
LARGE = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def amount(value: float, unit: str) -> str:
    """Return a number with its unit: three digits, and an SI prefix."""
    scales = SMALL if unit == "s" else LARGE
    factor, prefix = next((scale for scale in scales if value >= scale[0]), scales[-1])
    scaled = value / factor
    digits = 0 if scaled >= 100 else 1 if scaled >= 10 else 2
    return f"{scaled:.{digits}f} {prefix}{unit}"


def tables(plan: Json) -> Iterator[Table]:
    """Yield one table for each subject."""
    yield _memory(plan)
    yield _floors(plan)
    if plan["server"]:
        yield _server(plan["server"], plan["floors"])
    yield _figures(plan["figures"])


def _table(*columns: str) -> Table:
    """Return an empty table: the first column to the left, numbers to the right."""
    table = Table(box=box.SIMPLE)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table


def _memory(plan: Json) -> Table:
    memory = plan["memory"]
    table = _table("memory of a chip", "")
    rows = {
        "all": "total",
        "that vLLM may take": "usable",
        "weights": "weights",
        "activations" + _mark(plan["figures"]["activations"]): "activations",
        "head in a second layout": "second_head",
        "KV cache": "kv_cache",
    }
    for label, key in rows.items():
        if memory[key] or key == "kv_cache":
            table.add_row(label, amount(memory[key], "B"))
    table.add_row("tokens in the cache of all", f"{memory['kv_tokens']:,}")
    table.add_row(f"sequences of {memory['context']:,.0f}", f"{memory['sequences']:,}")
    if plan["server"]:
        table.add_row("tokens in the server's cache", f"{plan['server']['kv_tokens']:,}")
    return table


def _floors(plan: Json) -> Table:
    floors, load = plan["floors"], plan["load"]
    shown = sum(picture["tokens"] for picture in load["pictures"])
    rows = {} if not shown else {f"pictures: {shown:,}": floors["vision"]}
    rows |= {
        f"prompt: {load['prompt_tokens']:,.0f}": floors["prefill"],
        "first of the answer": floors["first_token"],
        f"next ones: {load['batch']:.3g} x {load['context']:,.0f}": floors["token"],
    }
    table = _table("tokens, and at least", "time", "limit", "compute", "memory", "link")
    for label, floor in rows.items():
        times = (_time(floor.get(part)) for part in ("compute", "memory", "link"))
        table.add_row(label, _time(floor["seconds"]), floor.get("limited_by", ""), *times)
    table.add_row("at most", f"{floors['tokens_per_second']:,.0f} tokens/s")
    return table


def _time(seconds: float | None) -> str:
    return amount(seconds, "s") if seconds else "-"


def _server(server: Json, floors: Json) -> Table:
    table = _table(f"mean of {server['requests']:,} answers", "measured", "floor", "share")
    rows = {
        "first token, without waiting": ("prefill", "first_token"),
        "first token": ("first_token", "first_token"),
        "next token": ("token", "token"),
    }
    for label, (key, floor) in rows.items():
        share = server["share_of_floor"][key]
        reached = "-" if share is None else f"{share:.1%}"
        table.add_row(label, _time(server[key]), _time(floors[floor]["seconds"]), reached)
    return table


def _figures(figures: Json) -> Table:
    table = _table("figure of a chip", "")
    table.add_column("from")
    for name, figure in figures.items():
        source = f"{figure['source']}{_mark(figure)}"
        table.add_row(name, amount(figure["value"], figure["unit"]), source)
    return table


def _mark(figure: Json) -> str:
    return " [guess]" if figure["guess"] else ""
