# SPDX-License-Identifier: Apache-2.0
"""Micro batch gives bit for bit what the engine gives without it.

On a CPU that holds with torch's product alone, which micro_batch_worker.py takes. With oneDNN's,
which vLLM takes there, the last bits differ: its sums over the last rows of a batch come in another
order. tests/models/test_network.py says how much.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import LLM, SamplingParams

from tests.end_to_end.cases import CASES
from tests.engines import TOP, engine
from tests.lane import ALL_LANES, ON_CPU, need_two_devices

pytestmark = [*ALL_LANES, pytest.mark.ranks]

STEP = 16384 if ON_CPU else 2048
LENGTHS = (1001, 5000, STEP - 100) if ON_CPU else (601, 1000, STEP - 100)
OFF = 1 << 30


def cut_from(llm: LLM, tokens: int) -> int:
    """Cut steps from this many tokens on; how many were cut so far, by each rank."""
    first, second = llm.collective_rpc("cut_from", args=(tokens,))
    assert first == second
    return first


def answers(llm: LLM, prompts: list[Any]) -> list[tuple[Any, ...]]:
    """Tokens, and all that is said of the first ones' log-probabilities."""
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=TOP)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    outputs += llm.chat([CASES["three-pictures"], CASES["two-videos"]], params, use_tqdm=False)
    given = (output.outputs[0] for output in outputs)
    return [
        (
            list(output.token_ids),
            [{token: found.logprob for token, found in step.items()} for step in output.logprobs],
        )
        for output in given
    ]


def test_nothing_changes(checkpoint: Callable[[str], Path], monkeypatch) -> None:
    """Guards uneven halves, several requests and pictures in a step, and decoding beside them."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    need_two_devices()
    generator = torch.Generator().manual_seed(0)
    prompts: list[Any] = [
        {"prompt_token_ids": torch.randint(200, (length,), generator=generator).tolist()}
        for length in LENGTHS
    ]
    options = {
        "tensor_parallel_size": 2,
        "max_model_len": STEP + 100,
        "max_num_batched_tokens": STEP,
        "worker_extension_cls": "tests.end_to_end.micro_batch_worker.MicroBatchWorker",
        "additional_config": {"micro_batch": 512},
        "enable_prefix_caching": False,
        "enforce_eager": ON_CPU,  # compiled, the sums within a norm are in another order
    }
    with engine(checkpoint("tiny"), **options) as llm:
        assert cut_from(llm, 512) == 0  # measuring memory, and capturing graphs, cut none
        batches = [prompts[:1], prompts[1:2], prompts]
        cut = [answers(llm, batch) for batch in batches]
        steps = cut_from(llm, OFF)
        whole = [answers(llm, batch) for batch in batches]
        assert cut_from(llm, OFF) == steps >= len(cut)
    assert cut == whole
