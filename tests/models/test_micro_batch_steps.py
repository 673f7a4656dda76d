# SPDX-License-Identifier: Apache-2.0
"""Which steps micro batch leaves alone beside parallel decoding, and how it leaves the layers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.forward_context import create_forward_context, override_forward_context

from vllm_glm41v_npu.models import micro_batch
from vllm_glm41v_npu.models.micro_batch import MicroBatch

FEWEST = 512


def decoder(fail: bool = False) -> Any:
    """One layer that passes on what it is given, or fails in its MLP."""

    def mlp(x: torch.Tensor) -> torch.Tensor:
        if fail:
            raise RuntimeError("out of memory")
        return x

    mlp.down_proj = SimpleNamespace(reduce_results=True)  # type: ignore[attr-defined]

    class Output(SimpleNamespace):
        def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
            assert not self.reduce_results  # else each half would be summed up twice
            return x, None

    attention = SimpleNamespace(
        qkv_proj=lambda x: (x, None), o_proj=Output(reduce_results=True), attend=lambda x, *_: x
    )
    layer = SimpleNamespace(
        self_attn=attention,
        mlp=mlp,
        add_input=lambda x, residual: (x, x),
        add_attention=lambda x, residual: (x, residual),
        post_mlp_layernorm=lambda x: x,
    )
    return SimpleNamespace(
        stage_layers=[layer],
        rotary_emb=SimpleNamespace(step=lambda positions: ()),
        start=lambda x: (x, None),
        end=lambda x, residual: x,
    )


def configured(draft_tokens: int | None) -> MicroBatch:
    speculative = draft_tokens and SimpleNamespace(num_speculative_tokens=draft_tokens)
    config: Any = SimpleNamespace(
        additional_config={"micro_batch": FEWEST},
        lora_config=None,
        parallel_config=SimpleNamespace(tensor_parallel_size=2),
        speculative_config=speculative or None,
    )
    made = MicroBatch.of(decoder(), config)
    assert made is not None
    return made


@pytest.mark.parametrize(("draft_tokens", "decoding"), [(None, 1), (3, 4), (8, 9)])
def test_steps_of_decoding_with_draft_tokens_are_not_cut(
    draft_tokens: int | None, decoding: int
) -> None:
    """Guards many requests that each bring their draft tokens and one more."""
    made = configured(draft_tokens)
    for longest, cut in ((decoding, False), (decoding + 1, True)):
        metadata = {"layer": SimpleNamespace(max_query_len=longest)}
        context = create_forward_context(
            metadata, VllmConfig(), cudagraph_runtime_mode=CUDAGraphMode.NONE
        )
        with override_forward_context(context):
            assert made.takes(FEWEST) is cut


@pytest.mark.parametrize("fail", [False, True])
def test_layers_sum_up_again_afterwards(fail: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the steps that follow, also after one that failed."""
    done = SimpleNamespace(wait=lambda: None)
    monkeypatch.setattr(micro_batch, "start_all_reduce", lambda share: done)
    network = decoder(fail)
    x = torch.arange(7.0)[:, None]
    if fail:
        with pytest.raises(RuntimeError, match="out of memory"):
            MicroBatch(network, FEWEST)(torch.arange(7), x=x)
    else:
        assert torch.equal(MicroBatch(network, FEWEST)(torch.arange(7), x=x), x)
    (layer,) = network.stage_layers
    assert layer.self_attn.o_proj.reduce_results and layer.mlp.down_proj.reduce_results
