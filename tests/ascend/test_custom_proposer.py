# SPDX-License-Identifier: Apache-2.0
"""A proposer of draft tokens that is named by its class, on vllm-ascend."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config import CompilationConfig, CUDAGraphMode

from vllm_glm41v_npu.patches import custom_proposer
from vllm_glm41v_npu.patches.custom_proposer import leave_out_pieces

pytestmark = pytest.mark.ascend

CLASS = "vllm_glm41v_npu.decoding.proposer.MemoryProposer"


def config() -> Any:
    speculative = SimpleNamespace(model=CLASS, num_speculative_tokens=2)
    compilation = CompilationConfig(cudagraph_mode=CUDAGraphMode.NONE)
    return SimpleNamespace(speculative_config=speculative, compilation_config=compilation)


def test_vllm_ascend_knows_no_class() -> None:
    """Guards patches/custom_proposer.py: it may go when this fails."""
    import vllm_ascend.ops  # noqa: F401  before the other
    from vllm_ascend import spec_decode

    own = inspect.unwrap(spec_decode.get_spec_decode_method)
    with pytest.raises(ValueError, match="Unknown speculative decoding method: custom_class"):
        own("custom_class", config(), None, None)


def test_a_class_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the runner's call, and the methods that vllm-ascend knows itself."""
    from vllm_glm41v_npu.ascend import proposer

    made = SimpleNamespace(propose=lambda sampled, counts, ids: (sampled, counts, ids))
    monkeypatch.setattr(proposer, "create_custom_proposer", lambda vllm_config: made)
    choose = custom_proposer._taking_classes(lambda method, *others: method)
    batch = SimpleNamespace(num_tokens_no_spec="counts", token_ids_cpu="ids")
    chosen = choose("custom_class", config(), None, SimpleNamespace(input_batch=batch))
    assert chosen.propose("sampled") == ("sampled", "counts", "ids")
    assert choose("ngram", config(), None, None) == "ngram"


@pytest.mark.parametrize(
    ("takes", "mode", "left"),
    [
        (True, CUDAGraphMode.PIECEWISE, CUDAGraphMode.PIECEWISE),
        (False, CUDAGraphMode.PIECEWISE, CUDAGraphMode.NONE),
        (False, CUDAGraphMode.FULL_AND_PIECEWISE, CUDAGraphMode.FULL_DECODE_ONLY),
        (False, CUDAGraphMode.FULL_DECODE_ONLY, CUDAGraphMode.FULL_DECODE_ONLY),
    ],
)
def test_graphs_beside_draft_tokens(
    monkeypatch: pytest.MonkeyPatch, takes: bool, mode: CUDAGraphMode, left: CUDAGraphMode
) -> None:
    """Guards Atlas 310P, whose runner would refuse to start."""
    backend = SimpleNamespace(captures_pieces_with_drafts=takes)
    monkeypatch.setattr(custom_proposer, "current_backend", lambda: backend)
    compilation = CompilationConfig(cudagraph_mode=mode)
    leave_out_pieces(compilation)
    assert compilation.cudagraph_mode == left
