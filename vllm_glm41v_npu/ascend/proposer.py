# SPDX-License-Identifier: Apache-2.0
"""The proposer on vllm-ascend 0.23.0, whose runner knows no `custom_class`.

On Atlas 310P also the graphs that its runner can capture beside guesses. Imported on Ascend alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import vllm_ascend.ops  # noqa: F401  before the others, or they import each other in a circle
import vllm_ascend.spec_decode as spec_decode
from vllm.config import CUDAGraphMode
from vllm.v1.spec_decode.custom_class_proposer import create_custom_proposer
from vllm_ascend.spec_decode.ngram_proposer import AscendNgramProposer

from vllm_glm41v_npu.backends import current_backend


class AscendCustomProposer(AscendNgramProposer):
    """Any `custom_class` of vLLM's, as a kind of the proposer that the runner asks after each step.

    Args:
        vllm_config: vLLM's, which names the class.
        runner: vllm-ascend's, which holds the texts.
    """

    def __init__(self, vllm_config: Any, runner: Any) -> None:
        self.runner = runner  # and nothing of the base class, which would search for n-grams
        self.proposer = create_custom_proposer(vllm_config)

    def propose(
        self, sampled_token_ids: Sequence[Sequence[int]], *args: Any, **kwargs: Any
    ) -> list[list[int]]:
        """The class's guesses, see MemoryProposer.propose."""
        batch = self.runner.input_batch
        return self.proposer.propose(
            sampled_token_ids, batch.num_tokens_no_spec, batch.token_ids_cpu
        )


def leave_out_pieces(compilation: Any) -> None:
    """Of vLLM's CompilationConfig, leave Atlas 310P the graphs of whole steps alone.

    Its runner makes every step eager that is not one of guesses, and then finds at its start that
    it should have captured a piecewise graph. Can go when
    `NPUModelRunner310._determine_batch_execution_and_padding` lets such captures pass.
    """
    mode = compilation.cudagraph_mode
    takes_pieces = current_backend().captures_pieces_with_drafts
    if not takes_pieces and mode.mixed_mode() == CUDAGraphMode.PIECEWISE:
        full = mode.decode_mode() == CUDAGraphMode.FULL
        compilation.cudagraph_mode = CUDAGraphMode.FULL_DECODE_ONLY if full else CUDAGraphMode.NONE


def mend_custom_class() -> None:
    """Let vllm-ascend take the method `custom_class`, and 310P any method; safe to repeat.

    Its runner takes the function of this name when it is first imported, which is later. Can go
    when `get_spec_decode_method` knows `custom_class`, as vLLM's runner does.
    """
    known = spec_decode.get_spec_decode_method
    if getattr(known, "takes_custom_class", False):
        return

    def get_spec_decode_method(method: str, vllm_config: Any, device: Any, runner: Any) -> Any:
        leave_out_pieces(vllm_config.compilation_config)
        if method == "custom_class":
            return AscendCustomProposer(vllm_config, runner)
        return known(method, vllm_config, device, runner)

    get_spec_decode_method.takes_custom_class = True  # type: ignore[attr-defined]
    spec_decode.get_spec_decode_method = get_spec_decode_method
