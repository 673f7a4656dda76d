# SPDX-License-Identifier: Apache-2.0
"""Parallel decoding beside plain decoding: how long a token takes, and how many guesses are right.

    python -m benchmarks.parallel_decoding [--only copy] [--rounds 5] [--threads 1] [--json FILE]

Engines with and without it are in one process and answer in turn, request by request, so that a
machine whose speed drifts treats all alike; each has answered a request before.
Printed are medians and ranges of ms a token after the first one, and the ratio off / on of the same
round (above 1 is better for it). One thread is timed by the process's own time, which other
programs disturb less; several by the clock.

The network is two of the layers of GLM-4.1V's decoder at a quarter of their width, in float32 with
random weights. It computes all that it would, but what it says is a script: text of this
repository, so that guesses are as right as on real text. Every answer is held against its script.

| workload | prompt | answer |
|---|---|---|
| copy | Python of this package | the same, with 1 word in 33 changed |
| thought | the start of a document of this repository | how it goes on |
| random | random tokens | random tokens |
| repeated | one of two, each asked three times | one of two, with 1 word in 20 changed |
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.in_tree import write_layers
from benchmarks.report.results import Row, compare
from benchmarks.results import ROOT, add_json_option, machine, spread, write
from vllm_glm41v_npu.decoding.proposer import MemoryProposer
from vllm_glm41v_npu.decoding.settings import speculative_config

SIDES = ("off", "ngram", "memory")
PROMPT, ANSWER = 192, 96  # tokens
VOCABULARY, WORDS = 8192, range(1000, 8000)  # and which of its ids are no special tokens
TEXT = {
    "hidden_size": 1024,
    "intermediate_size": 3424,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "vocab_size": VOCABULARY,
}
VISION = {"out_hidden_size": 1024, "depth": 1}


class Request(NamedTuple):
    """Token ids of a prompt, and of what the network is to say."""

    prompt: list[int]
    answer: list[int]


def tokens(path: Path) -> list[int]:
    """A file's words, parts of words and signs, each an id of its own as long as there are any."""
    ids: dict[str, int] = {}
    words = re.findall(r" ?\w{1,6}|\s+|[^\w\s]", path.read_text())
    return [WORDS[ids.setdefault(word, len(ids)) % len(WORDS)] for word in words]


def changed(text: list[int], one_in: int, seed: int) -> list[int]:
    chance = random.Random(seed)
    return [chance.choice(WORDS) if chance.randrange(one_in) == 0 else token for token in text]


def workloads() -> dict[str, list[Request]]:
    """Requests by the name of their workload."""
    package, documents = ROOT / "vllm_glm41v_npu", ROOT / "docs"
    code = [tokens(package / name) for name in ("plugin.py", "backends.py")]
    prose = [tokens(documents / name) for name in ("serving.md", "video.md")]
    chance = random.Random(0)
    noise = [[chance.choice(WORDS) for _ in range(PROMPT + ANSWER)] for _ in code]
    starts = [text[:32] for text in prose]
    return {
        "copy": [
            Request(text[:PROMPT], changed(text[:ANSWER], 33, seed))
            for seed, text in enumerate(code)
        ],
        "thought": [Request(text[:PROMPT], text[PROMPT:][:ANSWER]) for text in prose],
        "random": [Request(text[:PROMPT], text[PROMPT:]) for text in noise],
        "repeated": [
            Request([*start, again], changed(text[PROMPT:][:ANSWER], 20, again))
            for again in WORDS[:3]
            for start, text in zip(starts, prose, strict=True)
        ],
    }


def follow(worker: Any, scripts: dict[bytes, list[int]]) -> None:
    """Let the network of a worker say what a script has, by the bytes of the prompt."""
    runner = worker.model_runner
    runner.guessed, sample = 0, runner._sample

    def sample_script(logits: Any, metadata: Any) -> Any:
        batch = runner.input_batch
        drafts = metadata.num_draft_tokens if metadata else [0] * batch.num_reqs
        runner.guessed += sum(drafts)
        row = 0
        logits.zero_()
        for request, drafted in enumerate(drafts):
            start = batch.num_prompt_tokens[request]
            script = scripts[batch.token_ids_cpu[request, :start].tobytes()]
            said = batch.num_tokens_no_spec[request] - start
            for token in script[said : said + drafted + 1]:
                logits[row, token] = 100.0
                row += 1
        return sample(logits, metadata)

    runner._sample = sample_script


def guessed(worker: Any) -> int:
    """How many tokens were guessed; vLLM's own counters are of the last engine in a process."""
    return worker.model_runner.guessed


def forget(worker: Any) -> None:
    """Let a proposer with a memory start afresh."""
    runner = worker.model_runner
    if isinstance(getattr(runner, "drafter", None), MemoryProposer):
        runner.drafter = MemoryProposer(runner.vllm_config)


class Side:
    """An engine, with parallel decoding of a kind or without."""

    def __init__(self, model: str, kind: str, requests: list[Request], threads: int) -> None:
        import numpy as np
        import torch
        from vllm import LLM

        self.llm = LLM(
            model,
            load_format="dummy",
            dtype="float32",
            max_model_len=1024,
            max_num_seqs=4,
            kv_cache_memory_bytes=64 << 20,
            limit_mm_per_prompt={"image": 0, "video": 0},
            enforce_eager=True,
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            speculative_config=speculative_config(None if kind == "off" else kind),
        )
        torch.set_num_threads(threads)  # vLLM has taken one for each core
        scripts = {np.array(one.prompt, np.int32).tobytes(): one.answer for one in requests}
        self.llm.collective_rpc(follow, args=(scripts,))
        self.clock = time.process_time if threads == 1 else time.perf_counter
        self.numbers = count()

    def forget(self) -> None:
        self.llm.collective_rpc(forget)

    def answer(self, request: Request) -> tuple[float, int, int]:
        """Seconds, steps and guesses from the first token to the last."""
        from vllm import SamplingParams

        engine = self.llm.llm_engine
        params = SamplingParams(temperature=0, max_tokens=ANSWER, ignore_eos=True, detokenize=False)
        engine.add_request(str(next(self.numbers)), {"prompt_token_ids": request.prompt}, params)
        outputs = engine.step()  # the whole prompt, and the first token
        (before,) = self.llm.collective_rpc(guessed)
        begin, steps = self.clock(), 0
        while engine.has_unfinished_requests():
            outputs = engine.step()
            steps += 1
        seconds = self.clock() - begin
        if list(outputs[0].outputs[0].token_ids) != request.answer:
            raise SystemExit("An answer is not its script: parallel decoding has changed it.")
        (after,) = self.llm.collective_rpc(guessed)
        return seconds, steps, after - before


def measure(sides: dict[str, Side], requests: list[Request]) -> dict[str, dict[str, float]]:
    """Figures of a workload by side; each request goes to all sides, one after the other."""
    for side in sides.values():
        side.forget()
    parts = [{kind: side.answer(request) for kind, side in sides.items()} for request in requests]
    said, figures = len(requests) * (ANSWER - 1), {}
    for kind in sides:
        seconds, steps, guesses = map(sum, zip(*(part[kind] for part in parts), strict=True))
        figures[kind] = {
            "ms": 1e3 * seconds / said,
            "tokens_per_step": said / steps,
            "right": (said - steps) / guesses if guesses else 0.0,
        }
    return figures


def start(threads: int, requests: list[Request]) -> dict[str, Side]:
    """Every side, over one description of the network."""
    with tempfile.TemporaryDirectory() as folder:
        write_layers(Path(folder))
        path = Path(folder) / "config.json"
        config = json.loads(path.read_text())
        config["text_config"] |= TEXT
        config["vision_config"] |= VISION
        path.write_text(json.dumps(config))
        return {kind: Side(folder, kind, requests, threads) for kind in SIDES}


def report(rounds: list[dict[str, dict[str, dict[str, float]]]]) -> list[str]:
    lines = [
        "| workload | | ms a token | off / on | tokens a step | guesses right |",
        "|---|---|---|---|---|---|",
    ]
    for name in rounds[0]:
        off = [one[name]["off"]["ms"] for one in rounds]
        for kind in SIDES:
            found = [one[name][kind] for one in rounds]
            ms = [one["ms"] for one in found]
            gains = spread([a / b for a, b in zip(off, ms, strict=True)]) if kind != "off" else ""
            last = f"{found[0]['tokens_per_step']:.2f} | {found[0]['right']:.0%}"
            lines.append(f"| {name} | {kind} | {spread(ms)} | {gains} | {last} |")
    return lines


def rows(rounds: list[dict[str, dict[str, dict[str, float]]]]) -> list[Row]:
    """Times for the report."""
    return [
        compare(
            "decoding",
            f"{name}, {kind}",
            "ms a token",
            [one[name][kind]["ms"] for one in rounds],
            "plain decoding",
            [one[name]["off"]["ms"] for one in rounds],
        )
        for name in rounds[0]
        for kind in SIDES[1:]
    ]


def main() -> None:
    works = workloads()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=tuple(works), help="one of the workloads")
    parser.add_argument("--threads", type=int, default=1)
    add_json_option(parser)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    sides = start(options.threads, [one for requests in works.values() for one in requests])
    rounds: list[dict[str, dict[str, dict[str, float]]]] = []
    measure(sides, works["copy"][:1])
    if options.only:
        works = {options.only: works[options.only]}
    for number in range(options.rounds):
        figures = {}
        for name, requests in works.items():
            figures[name] = measure(sides, requests)
            print(f"round {number + 1}, {name}: {figures[name]}", file=sys.stderr, flush=True)
        rounds.append(figures)
    print(f"{options.threads} threads, {options.rounds} rounds, {machine()}\n")
    print("\n".join(report(rounds)))
    write(options.json, "Parallel decoding beside plain decoding", rows(rounds))


if __name__ == "__main__":
    main()
