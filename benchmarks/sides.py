# SPDX-License-Identifier: Apache-2.0
"""Ours and its peers as processes that stay alive and answer when they are asked.

vLLM's plugins are process-wide, so this package's class and vLLM's in-tree one cannot be in one
process; and sides that are asked in turn see the same drift of the machine's speed. A process reads
requests as lines of JSON and answers each with a line of figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from benchmarks.results import ROOT

OURS, IN_TREE, TRANSFORMERS = "ours", "in-tree", "transformers"
PLUGIN = "glm41v_npu"
QUESTION = "What number is written in the picture?"
PICTURE_SIZE = {"shortest_edge": 12544, "longest_edge": 2 * 336 * 336}
"""Pixels that a picture is resized to at least and at most, times two frames, on every side."""
Figures = dict[str, Any]


def variables(side: str) -> dict[str, str]:
    """The environment of a side: every plugin of vLLM that is installed, ours on our side alone."""
    groups = [group for group in entry_points().groups if group.startswith("vllm.")]
    names = {plugin.name for group in groups for plugin in entry_points(group=group)}
    chosen = names if side == OURS else names - {PLUGIN}
    return os.environ | {"VLLM_PLUGINS": ",".join(sorted(chosen)), "HF_HUB_OFFLINE": "1"}


class Side:
    """One side's process, which is ready once this object is there.

    Args:
        side: OURS, IN_TREE or TRANSFORMERS.
        model: The checkpoint.
        dtype: As in vLLM; "auto" is the side's default.
        options: More of `vllm.LLM`.
    """

    def __init__(self, side: str, model: Path, dtype: str = "auto", **options: Any) -> None:
        self.name = side
        environment = variables(side) | {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "OMP_NUM_THREADS": str(os.cpu_count()),
        }
        given = json.dumps({"side": side, "model": str(model), "dtype": dtype, "options": options})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sides", given],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.dtype: str = self._read()["dtype"]

    def ask(self, **request: Any) -> Figures:
        """Figures of one request, whose keys are the fields of `Request`."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> Figures:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise SystemExit(f"The {self.name} side ended with exit code {code}; see above.")
        return json.loads(line)


# ---- In the process of a side


class Request(NamedTuple):
    """A question about a random square picture; the same seed is the same picture."""

    seed: int
    pixels: int = 336
    new_tokens: int = 1
    question: str = QUESTION

    def messages(self) -> list[dict[str, Any]]:
        import numpy as np
        from PIL import Image

        from vllm_glm41v_npu.cli.ask import conversation

        shape = (self.pixels, self.pixels, 3)
        pixels = np.random.default_rng(self.seed).integers(0, 256, shape, dtype=np.uint8)
        return conversation([Image.fromarray(pixels)], self.question)


def figures(begin: float, tokens: list[int], after_first: float) -> Figures:
    """Of a request that has just ended, which took `after_first` seconds from its first token."""
    taken = time.perf_counter() - begin
    each = after_first / (len(tokens) - 1) if len(tokens) > 1 else 0.0
    return {"first_ms": 1e3 * (taken - after_first), "token_ms": 1e3 * each, "tokens": tokens}


def vllm_side(model: str, dtype: str, options: dict[str, Any]) -> tuple[str, Callable]:
    """The dtype, and what answers a request."""
    from vllm import LLM, SamplingParams

    settings: dict[str, Any] = {
        "max_model_len": 512,
        "max_num_batched_tokens": 512,
        "max_num_seqs": 4,
        "kv_cache_memory_bytes": 256 << 20,
        "limit_mm_per_prompt": {"image": 1, "video": 0},
        "mm_processor_kwargs": {"size": PICTURE_SIZE},
        "skip_mm_profiling": True,  # else a start takes minutes in bfloat16 on a CPU without it
        "enforce_eager": True,
        "disable_log_stats": False,
    }
    llm = LLM(model, dtype=dtype, **settings | options)

    def answer(request: Request) -> Figures:
        messages = request.messages()
        params = SamplingParams(temperature=0, max_tokens=request.new_tokens, ignore_eos=True)
        begin = time.perf_counter()
        (output,) = llm.chat(messages, params, use_tqdm=False)
        times = output.metrics
        found = figures(
            begin, list(output.outputs[0].token_ids), times.last_token_ts - times.first_token_ts
        )
        cached = (output.num_cached_tokens or 0) / len(output.prompt_token_ids)
        return found | {"cached": cached}

    return str(llm.model_config.dtype).removeprefix("torch."), answer


def transformers_side(model: str, dtype: str) -> tuple[str, Callable]:
    """Likewise."""
    from transformers import AutoProcessor, Glm4vForConditionalGeneration
    from transformers.generation import BaseStreamer

    processor = AutoProcessor.from_pretrained(model)
    processor.image_processor.size = PICTURE_SIZE
    network = Glm4vForConditionalGeneration.from_pretrained(model, dtype=dtype)

    class Clock(BaseStreamer):
        """When each token came; first of all comes the prompt."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: object) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    def answer(request: Request) -> Figures:
        (message,) = request.messages()
        picture, text = message["content"]
        content = [{"type": "image", "image": picture["image_pil"]}, text]
        begin, clock = time.perf_counter(), Clock()
        inputs = processor.apply_chat_template(
            [message | {"content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        count = request.new_tokens
        out = network.generate(
            **inputs, do_sample=False, min_new_tokens=count, max_new_tokens=count, streamer=clock
        )
        tokens = out[0, inputs["input_ids"].shape[1] :].tolist()
        return figures(begin, tokens, clock.times[-1] - clock.times[1])

    return str(network.dtype).removeprefix("torch."), answer


def main() -> None:
    replies: TextIO = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is printed
    given = json.loads(sys.argv[1])
    side, model, dtype = given["side"], given["model"], given["dtype"]
    if side == TRANSFORMERS:
        dtype, answer = transformers_side(model, dtype)
    else:
        dtype, answer = vllm_side(model, dtype, given["options"])
    print(json.dumps({"dtype": dtype}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(Request(**json.loads(line)))), file=replies, flush=True)


if __name__ == "__main__":
    main()
