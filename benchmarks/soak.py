# SPDX-License-Identifier: Apache-2.0
"""An hour of requests with new pictures, and the memory of each of the server's processes.

    python -m benchmarks.soak [--seconds 3600] [--at-once 8] [--json FILE] [-- OPTIONS OF SERVE]

The server holds the tiny checkpoint, with caches that are full after a minute or two, so that
what rises later is a leak. Most requests show a picture that was never shown before; some are
texts, some clients leave in the middle of an answer, and some pictures are broken. The exit code is
1 where a process still grows after the first third, or where an answer is not as it has to be.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from benchmarks.in_tree import TINY
from benchmarks.process_memory import Memory, settled, watch
from benchmarks.report.results import Row, Spread
from benchmarks.results import add_json_option, machine, write
from tests.end_to_end.servers import data_uri, request, serving

QUESTION = "What number is written in the picture?"
NEW_TOKENS = 24
KINDS = {"picture": 0.82, "text": 0.08, "leaves": 0.05, "broken": 0.05}
"""Shares of the requests, by what they ask and what their client does."""

SAMPLES = 240
POINTS = 24
"""Measurements in all, and lines of the report."""

NAMED = ("--served-model-name", "tiny")
SMALL_CACHES = ("--kv-cache-memory-bytes", str(24 << 20), "--mm-processor-cache-gb", "0.05")


def new_picture(rng: np.random.Generator) -> bytes:
    """A PNG of coloured squares, of a size and content that no other call has given."""
    height, width = rng.integers(56, 300, 2)
    squares = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(squares).resize((width, height)).save(file, "png", compress_level=1)
    return file.getvalue()


def body(kind: str, number: int) -> dict[str, Any]:
    """The request with this number; its picture depends on the number alone."""
    if kind == "text":
        asked = request(f"Which number comes after {number}?")
    else:
        picture = new_picture(np.random.default_rng(number))
        asked = request(QUESTION, data_uri(picture[:200] if kind == "broken" else picture))
    return asked | {"max_tokens": NEW_TOKENS, "stream": kind == "leaves"}


class Clients:
    """Clients that ask without a pause until the time is over.

    Attributes:
        done: How many requests of each kind ended as they have to.
        wrong: Sentences about the others.
    """

    def __init__(self, address: str, at_once: int) -> None:
        self._address, self._at_once = address, at_once
        self._numbers, self._rng = count(), random.Random(0)
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def run(self, seconds: float) -> None:
        """Ask for this long; requests that are under way then are waited for."""
        until = time.monotonic() + seconds
        # After some refusals vLLM closes the connection, without saying so.
        headers = {"Connection": "close"}
        async with httpx.AsyncClient(
            base_url=self._address, timeout=120, headers=headers
        ) as client:
            await asyncio.gather(*(self._work(client, until) for _ in range(self._at_once)))

    async def _work(self, client: httpx.AsyncClient, until: float) -> None:
        while time.monotonic() < until:
            (kind,) = self._rng.choices(list(KINDS), list(KINDS.values()))
            asked = body(kind, next(self._numbers))
            expected = 400 if kind == "broken" else 200
            try:
                async with client.stream("POST", "/v1/chat/completions", json=asked) as response:
                    if kind != "leaves":
                        await response.aread()
            except httpx.HTTPError as error:
                self.wrong.append(f"{kind}: {error!r}")
                await asyncio.sleep(1)  # a server that has ended refuses a thousand a second
                continue
            if response.status_code == expected:
                self.done[kind] += 1
            else:
                self.wrong.append(f"{kind}: {response.status_code}, expected {expected}")


async def soak(
    address: str, server: psutil.Process, seconds: float, at_once: int
) -> tuple[Memory, Clients]:
    """Ask the server at `address` for so long, and measure the memory of its processes."""
    memory: Memory = defaultdict(list)
    clients = Clients(address, at_once)
    watching = asyncio.create_task(watch(server, seconds / SAMPLES, memory))
    try:
        await clients.run(seconds)
    finally:
        watching.cancel()
    return memory, clients


def verdict(memory: Memory, clients: Clients, most: float) -> list[str]:
    """Return a sentence for each fault; nothing where all is well."""
    end = max(points[-1][0] for points in memory.values())
    grown = settled(memory)
    ended = [name for name in grown if memory[name][-1][0] < 0.9 * end]
    found = [f"The process {name} ended before the others." for name in ended]
    for name, (rise, hourly, _) in grown.items():
        if rise > most and name not in ended:
            found.append(
                f"The process {name} grows: {rise:.1f} MiB after settling, {hourly:.0f} MiB an "
                f"hour; expected {most:g} MiB at most. Look for what requests leave behind."
            )
    if clients.wrong:
        first = "; ".join(clients.wrong[:3])
        found.append(f"{len(clients.wrong)} requests did not end as they have to: {first}.")
    if not clients.done["picture"]:
        found.append("No picture was answered.")
    return found


def rows(memory: Memory) -> list[Row]:
    """The memory of each process over time, in POINTS steps."""
    longest = max(points[-1][0] for points in memory.values()) or 1.0
    lines = []
    for name, points in memory.items():
        steps: dict[int, list[float]] = defaultdict(list)
        for second, size in points:
            steps[min(int(POINTS * second / longest), POINTS - 1)].append(size)
        for step, sizes in sorted(steps.items()):
            minute = round((step + 0.5) * longest / POINTS / 60, 2)
            lines.append(_row("memory", name, "MiB", sizes, minute))
    return lines


def summary(memory: Memory, clients: Clients) -> list[Row]:
    """Say what was asked, and where each process's memory stands and goes after settling."""
    lines = [_row("requests", kind, "", [number]) for kind, number in clients.done.items()]
    for name, grown in settled(memory).items():
        lines.append(_row("memory after settling", name, "MiB", [grown.level]))
        lines.append(_row("growth after settling", name, "MiB an hour", [grown.hourly]))
    return lines


def _row(what: str, case: str, unit: str, values: Sequence[float], minute: float = -1) -> Row:
    load: dict[str, Any] = {"load": minute, "load_unit": "minutes"} if minute >= 0 else {}
    return Row(what=what, case=case, unit=unit, ours=Spread.of(values), **load)


def environment(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Without what would come before the KV cache's size among the options."""
    return {name: value for name, value in variables.items() if name != "VLLM_CPU_KVCACHE_SPACE"}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
        def number(text: str) -> float:
            if (value := kind(text)) <= 0:
                raise argparse.ArgumentTypeError(f"{text} is given; expected more than 0.")
            return value

        return number

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=positive(float), default=3600)
    parser.add_argument("--at-once", type=positive(int), default=8, help="requests under way")
    parser.add_argument(
        "--most", type=float, default=16, help="MiB that a process may grow by after settling"
    )
    parser.add_argument(
        "serve", nargs="*", default=SMALL_CACHES, help="options of vllm serve, after --"
    )
    add_json_option(parser)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with serving(TINY, log, *NAMED, *options.serve, variables=environment()) as server:
            work = soak(server.address, server.process, options.seconds, options.at_once)
            memory, clients = asyncio.run(work)
    lines = summary(memory, clients)
    print(f"{options.seconds:.0f} s, {options.at_once} requests at once, {machine()}")
    for row in lines:
        assert row.ours
        print(f"{row.what}, {row.case}: {row.ours.median:,.1f} {row.unit}")
    wrong = verdict(memory, clients, options.most)
    write(
        options.json,
        "Memory under an hour of new pictures",
        [*lines, *rows(memory)],
        notes=[
            "The tiny checkpoint, eager on a CPU; memory without files that are mapped.",
            *(wrong or ["No process grows after settling."]),
        ],
    )
    if wrong:
        sys.exit("\n".join(wrong))
    print("No process grows after settling.")


if __name__ == "__main__":
    main()
