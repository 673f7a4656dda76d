# SPDX-License-Identifier: Apache-2.0
"""Ours and the oracle: vLLM's engine in this process, and transformers in float32."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, Glm4vForConditionalGeneration
from vllm import LLM, RequestOutput, SamplingParams

Message = dict[str, Any]
NEW_TOKENS = 32
TOP = 20

# Small enough that a long prompt takes several steps.
STEP_TOKENS = 1024


@contextmanager
def engine(model: Path, **options: Any) -> Iterator[LLM]:
    """vLLM's engine over `model`, in this process unless the options need several."""
    settings: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 8192,
        "max_num_batched_tokens": STEP_TOKENS,
        "max_num_seqs": 8,
        "limit_mm_per_prompt": {"image": 3},
        "mm_processor_cache_gb": 0.1,
        "kv_cache_memory_bytes": 256 << 20,
        "enable_mm_embeds": True,
    }
    llm = LLM(str(model), **settings | options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def ask(llm: LLM, requests: list[list[Message]]) -> list[RequestOutput]:
    """Greedy answers of exactly NEW_TOKENS tokens, with the first step's log-probabilities."""
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=TOP)
    return llm.chat(requests, params, use_tqdm=False)


def tokens(output: RequestOutput) -> list[int]:
    return list(output.outputs[0].token_ids)


def network_call(llm: LLM, call: Callable[[Any], Any]) -> Any:
    """What `call` returns for the network inside the engine."""
    return llm.apply_model(call)[0]


@dataclass
class Expected:
    """What transformers computes for one request."""

    prompt_ids: list[int]
    tokens: list[int]
    logprobs: torch.Tensor
    """float32 [vocab_size], of the first new token."""


class Oracle:
    """transformers over the same checkpoint."""

    def __init__(self, model: Path) -> None:
        self.path = model

    @cached_property
    def processor(self) -> Any:
        return AutoProcessor.from_pretrained(self.path)

    @cached_property
    def network(self) -> Any:
        network = Glm4vForConditionalGeneration.from_pretrained(self.path, dtype=torch.float32)
        network.generation_config.eos_token_id = None  # always NEW_TOKENS tokens
        return network.eval()

    def inputs(self, messages: list[Message]) -> dict[str, torch.Tensor]:
        parts = [
            {"type": "image", "image": part["image_pil"]} if "image_pil" in part else part
            for part in messages[0]["content"]
        ]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": parts}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    @torch.inference_mode()
    def answer(self, messages: list[Message], new_tokens: int = NEW_TOKENS) -> Expected:
        inputs = self.inputs(messages)
        out = self.network.generate(
            **inputs,
            max_new_tokens=new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        length = inputs["input_ids"].shape[1]
        return Expected(
            inputs["input_ids"][0].tolist(),
            out.sequences[0, length:].tolist(),
            out.logits[0][0].float().log_softmax(-1),
        )


def check_equal(output: RequestOutput, want: Expected) -> None:
    """Prompt ids, every token, and the first step's best log-probabilities within 1e-4."""
    assert list(output.prompt_token_ids or []) == want.prompt_ids
    assert output.outputs[0].logprobs is not None
    for token, logprob in output.outputs[0].logprobs[0].items():
        assert abs(logprob.logprob - want.logprobs[token].item()) < 1e-4
    assert tokens(output) == want.tokens
