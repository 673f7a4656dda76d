# SPDX-License-Identifier: Apache-2.0
"""Means over the requests of a running vLLM server, read from /metrics.

The names are vLLM's (`vllm/v1/metrics/loggers.py`). Engines of one server are added up.
"""

from __future__ import annotations

import time
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException

from vllm_glm41v_npu.versions import STABLE

PROMPT, ANSWER = "vllm:request_prompt_tokens", "vllm:request_generation_tokens"
FIRST_TOKEN = "vllm:time_to_first_token_seconds"
QUEUE, PREFILL = "vllm:request_queue_time_seconds", "vllm:request_prefill_time_seconds"
DECODE = "vllm:request_decode_time_seconds"
STEPS = "vllm:iteration_tokens_total"
GENERATED, PROMPTED = "vllm:generation_tokens_total", "vllm:prompt_tokens_total"
CACHED = "vllm:prompt_tokens_cached_total"
HISTOGRAMS = (PROMPT, ANSWER, FIRST_TOKEN, QUEUE, PREFILL, DECODE, STEPS)
SAMPLES = (
    *(f"{name}_{part}" for name in HISTOGRAMS for part in ("sum", "count")),
    GENERATED,
    PROMPTED,
    CACHED,
)
"""The samples that are read."""

CACHE = "vllm:cache_config_info"
"""The metric whose labels hold the cache's size."""

TIMEOUT = 10.0
WANTED = (
    "Give the address of a running vLLM server, such as http://127.0.0.1:8000, that was started "
    "without --disable-log-stats."
)


class ServerError(ValueError):
    """The server gives no figures; the message says why, and what to do."""


@dataclass(frozen=True)
class Measured:
    """Means over the requests that ended.

    requests: how many ended.
    prompt_tokens, answer_tokens: of one request; the prompt includes its pictures.
    batch: tokens that a step of the engine gives, over all its steps.
    queue, prefill, first_token: seconds of one request; the last from its arrival.
    token: seconds between two tokens of an answer; None where no answer had two.
    cached: the share of the prompts' tokens that were in the prefix cache.
    kv_tokens: the tokens that fit the KV cache.
    """

    requests: int
    prompt_tokens: float
    answer_tokens: float
    batch: float
    queue: float
    prefill: float
    first_token: float
    token: float | None
    cached: float
    kv_tokens: int

    @classmethod
    def of(cls, samples: Mapping[str, float]) -> Measured:
        """Return the means of what `parse` reads, or of the difference of two readings.

        Raises:
            ServerError: No request ended.
        """
        requests = int(samples[f"{PROMPT}_count"])
        if requests < 1 or not samples[f"{FIRST_TOKEN}_count"]:
            raise ServerError(
                "The server has answered no request in this time, so nothing was measured. "
                "Send some, and ask again."
            )

        def mean(name: str) -> float:
            return samples[f"{name}_sum"] / samples[f"{name}_count"]

        later_tokens = samples[f"{ANSWER}_sum"] - requests
        return cls(
            requests,
            mean(PROMPT),
            mean(ANSWER),
            max(1.0, samples[GENERATED] / samples[f"{STEPS}_count"]),
            mean(QUEUE),
            mean(PREFILL),
            mean(FIRST_TOKEN),
            samples[f"{DECODE}_sum"] / later_tokens if later_tokens > 0 else None,
            samples[CACHED] / samples[PROMPTED],
            int(samples[CACHE]),
        )


def measure(server: str, seconds: float = 0.0, api_key: str | None = None) -> Measured:
    """Return what the server at this address measures in these seconds; since its start if 0.

    Servers of `glm41v serve` ask for the key on /metrics too.

    Raises:
        ServerError: It does not answer, is no vLLM, or has answered no request.
    """
    server = server.rstrip("/").removesuffix("/v1")  # as OpenAI's clients are given it
    samples = parse(_get(server, api_key), server)
    if seconds:
        time.sleep(seconds)
        before, samples = samples, parse(_get(server, api_key), server)
        samples |= {name: samples[name] - before[name] for name in SAMPLES}
    return Measured.of(samples)


def parse(text: str, server: str) -> dict[str, float]:
    """Return the samples that are needed, added up over all engines.

    Raises:
        ServerError: One is missing, or it is no Prometheus text.
    """
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ModuleNotFoundError as error:
        raise ServerError(
            "prometheus_client, which vLLM brings, is not installed in this Python. Install it, or "
            "ask where vLLM is installed."
        ) from error
    found: defaultdict[str, float] = defaultdict(float)
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in SAMPLES:
                    found[sample.name] += sample.value
                elif sample.name == CACHE:
                    labels = sample.labels
                    found[CACHE] += int(labels["num_gpu_blocks"]) * int(labels["block_size"])
    except (ValueError, KeyError) as error:
        raise ServerError(f"{server}/metrics cannot be read ({error}). {WANTED}") from error
    if missing := [name for name in (*SAMPLES, CACHE) if name not in found]:
        raise ServerError(
            f"{server}/metrics lacks {len(missing)} of vLLM {STABLE.vllm}'s metrics, such as "
            f"{missing[0]}. {WANTED}"
        )
    return found


def _get(server: str, api_key: str | None) -> str:
    """Return the text at /metrics; raise ServerError where there is none."""
    try:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        request = urllib.request.Request(f"{server}/metrics", headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return answer.read().decode()
    except (OSError, ValueError, HTTPException) as error:
        raise ServerError(f"{server}/metrics does not answer ({error}). {WANTED}") from error
