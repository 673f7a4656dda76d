# SPDX-License-Identifier: Apache-2.0
"""Measure a live server with AISBench: how many answers are right, or how fast they come.

    python examples/aisbench/run.py accuracy [MODEL]
    python examples/aisbench/run.py perf [MODEL]

AISBench is installed into an environment of its own, a data set in TextVQA's format is made of
the tiny checkpoint's held-out pictures, `vllm serve` is started, and `ais_bench` run against it.
"""

from __future__ import annotations

import argparse
import csv
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from string import Template

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from examples.aisbench.textvqa import SUFFIX, offline_accuracy, read_items, write_set  # noqa: E402

NAME = "glm4v"
START_SECONDS = 900
TASKS = {
    "accuracy": ("vllm_api_general_chat", "all"),
    "perf": ("vllm_api_stream_chat", "perf"),
}
"""Task to AISBench's configuration of the model, and its mode."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("model", nargs="?", default=str(ROOT / "assets" / "glm41v-tiny"))
    parser.add_argument("--pictures", type=int, default=200, help="how many (200)")
    parser.add_argument("--at-once", type=int, default=16, help="requests at a time (16)")
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer (64)")
    parser.add_argument("--folder", type=Path, default=Path("aisbench-run"), help="of all files")
    parser.add_argument("--venv", type=Path, help="AISBench's environment (FOLDER/venv)")
    parser.add_argument(
        "--port", type=int, help=f"of a server that runs already, where the model is {NAME!r}"
    )
    parser.add_argument(
        "--no-reasoning-parser", action="store_true", help="to see what the answers score then"
    )
    parser.add_argument("--questions", type=Path, help="a textvqa_val.jsonl of other pictures")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    folder = arguments.folder.resolve()
    ais_bench = installed(arguments.venv or folder / "venv")
    questions = arguments.questions or write_set(folder / "textvqa", arguments.pictures)
    suffix = SUFFIX if arguments.questions else ""
    port = arguments.port or free_port()
    values = {
        "model": Path(arguments.model).resolve(),
        "name": NAME,
        "port": port,
        "max_tokens": arguments.max_tokens,
        "at_once": arguments.at_once,
        "questions": questions,
        "suffix": suffix,
    }
    configs = write_configs(folder / "configs", values)
    parser = [] if arguments.no_reasoning_parser else ["--reasoning-parser", "glm41v"]
    served = (
        nullcontext()
        if arguments.port
        else server(arguments.model, port, folder / "server.log", *parser)
    )
    with served:
        results = run_aisbench(ais_bench, arguments.task, configs, folder / "results")
    if arguments.task == "accuracy":
        print(f"AISBench, of {len(read_items(questions))} pictures: {accuracy(results):.2f}%")
        offline = offline_accuracy(arguments.model, questions, suffix, arguments.max_tokens)
        print(f"Without a server: {offline:.2f}%")
    print(f"Everything that AISBench wrote: {results}")


def installed(venv: Path) -> Path:
    """Return the command `ais_bench`; install it first where it is not there."""
    command = venv.absolute() / "bin" / "ais_bench"
    if not command.exists():
        print(f"Installing AISBench, with a PyTorch of its own, into {venv}: some minutes.")
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        pip = [str(venv / "bin" / "python"), "-m", "pip", "install"]
        subprocess.run([*pip, "-r", str(HERE / "requirements.txt")], check=True)
    return command


def write_configs(folder: Path, values: dict[str, object]) -> Path:
    """Write AISBench's configurations with the values of this run; return their folder."""
    source = HERE / "configs"
    for template in source.rglob("*.py.in"):
        path = folder / template.relative_to(source).with_suffix("")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(template.read_text()).substitute(values))
    return folder


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def server(model: str, port: int, log: Path, *options: str) -> Iterator[None]:
    """Start `vllm serve` of this Python, wait until it answers, and stop it afterwards."""
    command = [str(Path(sys.executable).parent / "vllm"), "serve", model, *options]
    command += ["--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--max-model-len", "4096", "--limit-mm-per-prompt", '{"image": 1}']
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        wait_until_healthy(process, port, log)
        yield
    finally:
        process.terminate()
        process.wait()


def wait_until_healthy(process: subprocess.Popen, port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(1)
    raise SystemExit(f"The server did not start; see {log}.")


def run_aisbench(ais_bench: Path, task: str, configs: Path, folder: Path) -> Path:
    """Run AISBench; return the folder of its results."""
    model, mode = TASKS[task]
    command = [str(ais_bench), "--config-dir", str(configs), "--models", model, "--mode", mode]
    command += ["--datasets", "textvqa_gen_base64", "--debug", "-w", str(folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, env=environment, cwd=folder.parent)
    return max(path for path in folder.iterdir() if path.is_dir())  # named by the time


def accuracy(results: Path) -> float:
    """Return the accuracy in AISBench's summary, in percent."""
    (summary,) = (results / "summary").glob("*.csv")
    (row,) = csv.DictReader(summary.read_text().splitlines())
    return float(row[f"{TASKS['accuracy'][0].replace('_', '-')}"])


if __name__ == "__main__":
    main()
