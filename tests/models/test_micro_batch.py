# SPDX-License-Identifier: Apache-2.0
"""Micro batch on a clock of its own: what is hidden, by the true network's proportions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.forward_context import create_forward_context, override_forward_context

from vllm_glm41v_npu.checks import OptionError, micro_batch_tokens
from vllm_glm41v_npu.models import micro_batch
from vllm_glm41v_npu.models.micro_batch import MicroBatch

pytestmark = pytest.mark.cpu

TOKENS, LAYERS = 4096, 4
# Weights of a layer on each of two devices, by million: what a token costs.
COSTS = {"qkv_proj": 9.4, "o_proj": 8.4, "mlp": 84.1}


class Clock:
    """Time that passes only where something is computed or waited for."""

    def __init__(self, delay: float) -> None:
        self.now, self.delay, self.waited, self.sums = 0.0, delay, 0.0, 0

    def compute(self, name: str):
        def run(x: torch.Tensor, *_):
            self.now += COSTS[name] * x.shape[0] / TOKENS
            return (x, None) if name != "mlp" else x

        return run

    def start_all_reduce(self, share: torch.Tensor) -> SimpleNamespace:
        self.sums += 1
        ready = self.now + self.delay
        return SimpleNamespace(wait=lambda: self.wait(ready))

    def wait(self, ready: float) -> None:
        self.waited += max(0.0, ready - self.now)
        self.now = max(self.now, ready)

    @property
    def hidden(self) -> float:
        return 1 - self.waited / (self.sums * self.delay)


def decoder_on(clock: Clock) -> Any:
    """A decoder that takes the true one's time and returns what it is given."""

    def layer() -> SimpleNamespace:
        attention = SimpleNamespace(
            qkv_proj=clock.compute("qkv_proj"),
            o_proj=clock.compute("o_proj"),  # and a place for reduce_results
            attend=lambda qkv, *_: qkv,
        )
        mlp = clock.compute("mlp")
        mlp.down_proj = SimpleNamespace()
        return SimpleNamespace(
            self_attn=attention,
            mlp=mlp,
            add_input=lambda x, residual: (x, x),
            add_attention=lambda x, residual: (x, residual),
            post_mlp_layernorm=lambda x: x,
        )

    return SimpleNamespace(
        stage_layers=[layer() for _ in range(LAYERS)],
        rotary_emb=SimpleNamespace(step=lambda positions: ()),
        start=lambda x: (x, None),
        end=lambda x, residual: x,
    )


@pytest.fixture
def run(monkeypatch):
    def run(delay: float, tokens: int = TOKENS) -> Clock:
        clock = Clock(delay)
        monkeypatch.setattr(micro_batch, "start_all_reduce", clock.start_all_reduce)
        x = torch.arange(tokens)[:, None]
        out = MicroBatch(decoder_on(clock), 2)(torch.arange(tokens), x=x)
        assert torch.equal(out, x)  # every token once, in its place
        return clock

    return run


@pytest.mark.parametrize("tokens", [TOKENS, TOKENS + 1, 2])
def test_each_half_is_all_reduced_twice_a_layer(run, tokens: int) -> None:
    """Guards odd numbers of tokens, and a sum that is left out."""
    assert run(1.0, tokens).sums == 4 * LAYERS


def test_sums_are_hidden_behind_the_other_half(run) -> None:
    """Guards the order: MindIE says 70 % of communication, which here is a quarter of the time."""
    compute = sum(COSTS.values())
    delay = compute / 3 / 4  # four sums a layer are a third of what it computes
    assert run(delay).hidden >= 0.7


def test_short_sums_are_hidden_whole_but_for_the_last(run) -> None:
    """Guards a wait that comes before the other half's work."""
    clock = run(4.0)
    assert clock.waited <= 4.0


@pytest.mark.parametrize(
    ("tokens", "mode", "query", "measuring", "expected"),
    [
        (2048, CUDAGraphMode.NONE, 2048, False, True),
        (2047, CUDAGraphMode.NONE, 2047, False, False),
        (2048, CUDAGraphMode.PIECEWISE, 2048, False, False),
        (2048, CUDAGraphMode.NONE, 4, False, False),
        (2048, CUDAGraphMode.NONE, 2048, True, False),
    ],
    ids=["prefill", "few", "graph", "decode", "measuring-memory"],
)
def test_steps_that_are_cut(tokens, mode, query, measuring, expected) -> None:
    """Guards decoding, with its draft tokens, and captured graphs."""
    batch = MicroBatch(decoder_on(Clock(1.0)), 2048, decode_tokens=4)
    metadata = None if measuring else {"layer": SimpleNamespace(max_query_len=query)}
    context = create_forward_context(metadata, VllmConfig(), cudagraph_runtime_mode=mode)
    with override_forward_context(context):
        assert batch.takes(tokens) is expected


def test_options() -> None:
    """Guards MindIE's default, and sentences for what cannot be."""
    assert micro_batch_tokens({}) is micro_batch_tokens({"micro_batch": False}) is None
    assert micro_batch_tokens({"micro_batch": True}) == 2048
    assert micro_batch_tokens({"micro_batch": 512}) == 512
    for wrong in (0, 1, -5, 1.5, "on"):
        with pytest.raises(OptionError, match="expected true, false, or the fewest tokens"):
            micro_batch_tokens({"micro_batch": wrong})
    with pytest.raises(OptionError, match="beside --enable-lora"):
        micro_batch_tokens({"micro_batch": True}, lora=True)


def test_vllm_ascends_own_sums_are_refused(monkeypatch) -> None:
    """Guards MatmulAllReduce and its like, which no one splits."""
    fused = SimpleNamespace(custom_op=object())
    monkeypatch.setattr(micro_batch, "_row_parallel", lambda layer: (fused, fused))
    with pytest.raises(OptionError, match="an all-reduce of its own"):
        MicroBatch(decoder_on(Clock(1.0)), 2048)
