# SPDX-License-Identifier: Apache-2.0
"""Run the benchmarks, each in a process of its own, and keep what they find as JSON.

    python -m benchmarks.run [--quick] [--only NAMES] [--output FOLDER]

A benchmark writes NAME.json to the folder, and what it prints goes to NAME.log. One that fails is
recorded as failed with its last lines, and the others go on; the exit code is then 1. So is one
that --quick leaves out, with the reason. `python -m benchmarks.report FOLDER` shows it all.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from benchmarks.report.results import Result, ResultsError, read_file
from benchmarks.results import ROOT, about_machine, versions

LAST_LINES = 12
LIMIT = 3600.0  # seconds


class Benchmark(NamedTuple):
    """A module of this package that takes --json FILE.

    quick: its arguments with --quick; None where that leaves it out.
    full: its arguments otherwise.
    smallest: its arguments for a test that it runs; its figures mean nothing.
    why_not: why --quick leaves it out.
    """

    name: str
    quick: str | None
    full: str = ""
    smallest: str = ""
    why_not: str = ""

    def arguments(self, quick: bool) -> list[str]:
        return shlex.split((self.quick or "") if quick else self.full)


BENCHMARKS = (
    Benchmark("preprocess", "--rounds 5", "--rounds 15", "--rounds 1"),
    Benchmark(
        "video_memory", "--seconds 20 --width 1280 --height 720", "", "--seconds 2 --width 320"
    ),
    Benchmark("int8_linear", "--quick", "", "--quick --tokens 1"),
    Benchmark(
        "parallel_decoding", "--rounds 2 --only copy", "--rounds 5", "--rounds 1 --only copy"
    ),
    Benchmark(
        "micro_batch",
        None,
        "",
        "--delays 0 --tokens 64 --rounds 1",
        "two ranks need both cores for minutes",
    ),
    Benchmark(
        "quantized_accuracy",
        "--count 10 --clips 10",
        "--count 300 --clips 200",
        "--count 1 --clips 1",
    ),
    Benchmark("repeated_picture", "--rounds 4", "--rounds 15", "--rounds 1"),
    Benchmark("network", "--rounds 3 --tokens 9", "--rounds 7", "--rounds 1 --tokens 2"),
    Benchmark(
        "serving",
        "--load 1 4 --prompts 16 --rounds 1",
        "--load 1 2 4 8 16 --rounds 3",
        "--load 1 --prompts 1 --rounds 1",
    ),
    Benchmark(
        "startup", None, "--rounds 3", "--rounds 1", "six starts of vLLM a round; serving times one"
    ),
    Benchmark(
        "in_tree",
        None,
        "--rounds 5",
        "--rounds 1 --repeats 2 --enforce-eager",
        "two starts of vLLM a round; network times the same",
    ),
    Benchmark(
        "mm_processor",
        None,
        "--rounds 3",
        "--rounds 1 --prompts 2",
        "four starts of vLLM a round; as preprocess",
    ),
)


def run(benchmark: Benchmark, quick: bool, output: Path) -> Result:
    """What the benchmark found, which is also written to the folder."""
    file, log = (output / f"{benchmark.name}.{suffix}" for suffix in ("json", "log"))
    file.unlink(missing_ok=True)
    if quick and benchmark.quick is None:
        return _record(benchmark, file, "left out", benchmark.why_not)
    command = ["python", "-m", f"benchmarks.{benchmark.name}", *benchmark.arguments(quick)]
    command += ["--json", str(file.resolve())]
    begin = time.perf_counter()
    with log.open("w") as lines:
        process = subprocess.Popen(
            [sys.executable, *command[1:]],
            cwd=ROOT,
            stdout=lines,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        ended = _wait(process)
    if ended != 0 or not file.is_file():
        last = "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
        how = f"more than {LIMIT:.0f} s" if ended is None else f"exit code {ended}"
        why = f"{how}; its last lines:\n{last}" if ended != 0 else f"no result written:\n{last}"
        seconds = time.perf_counter() - begin
        return _record(benchmark, file, "failed", why, shlex.join(command[:-2]), seconds)
    return read_file(file)


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code; None where it took too long. Nothing that it started outlives it."""
    try:
        return process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _record(
    benchmark: Benchmark,
    file: Path,
    status: Literal["failed", "left out"],
    why: str,
    command: str = "",
    seconds: float = 0.0,
) -> Result:
    """Write that nothing was measured."""
    result = Result(
        name=benchmark.name,
        title=benchmark.name,
        status=status,
        command=command,
        machine=about_machine(),
        versions=versions(),
        seconds=round(seconds, 1),
        why=why,
    )
    result.write(file)
    return result


def chosen(names: Sequence[str], known: Sequence[Benchmark] = BENCHMARKS) -> list[Benchmark]:
    """Those of these names; all without any."""
    table = {benchmark.name: benchmark for benchmark in known}
    if unknown := [name for name in names if name not in table]:
        raise SystemExit(
            f"No benchmark is named {', '.join(unknown)}; there are: {', '.join(table)}."
        )
    return [table[name] for name in names] if names else list(known)


def run_all(benchmarks: Sequence[Benchmark], quick: bool, output: Path) -> bool:
    """Whether none failed."""
    output.mkdir(parents=True, exist_ok=True)
    good = True
    for benchmark in benchmarks:
        print(f"{benchmark.name} ...", flush=True)
        result = run(benchmark, quick, output)
        good &= result.status != "failed"
        print(f"{benchmark.name}: {result.status}, {result.seconds:.0f} s", flush=True)
        if result.status == "failed":
            print(f"  {result.why}".replace("\n", "\n  "), flush=True)
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few rounds: a quarter of an hour")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these alone")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmark-results")
    options = parser.parse_args()
    benchmarks = chosen(options.only)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end as by Ctrl-C: leave nothing
    try:
        good = run_all(benchmarks, options.quick, options.output)
    except ResultsError as error:
        raise SystemExit(str(error)) from None
    made = f"python -m benchmarks.report {options.output}"
    print(f"Results are in {options.output}; a page of them: {made}")
    raise SystemExit(not good)


if __name__ == "__main__":
    main()
