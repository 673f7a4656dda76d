# SPDX-License-Identifier: Apache-2.0
"""A proposer of draft tokens named by its class, in the form that vllm-ascend's runner drives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import vllm_ascend.ops  # noqa: F401  before the others, or they import each other in a circle
from vllm.v1.spec_decode.custom_class_proposer import create_custom_proposer
from vllm_ascend.spec_decode.ngram_proposer import AscendNgramProposer


class AscendCustomProposer(AscendNgramProposer):
    """Adapter from the proposer that the runner asks after each step to vLLM's `custom_class`.

    Args:
        vllm_config: vLLM's config, which names the class.
        runner: vllm-ascend's runner, which holds the texts.
    """

    def __init__(self, vllm_config: Any, runner: Any) -> None:
        self.runner = runner  # the base class's __init__ would prepare a search for n-grams
        self.proposer = create_custom_proposer(vllm_config)

    def propose(
        self, sampled_token_ids: Sequence[Sequence[int]], *args: Any, **kwargs: Any
    ) -> list[list[int]]:
        """Return the class's draft tokens for each request; see MemoryProposer.propose."""
        batch = self.runner.input_batch
        return self.proposer.propose(
            sampled_token_ids, batch.num_tokens_no_spec, batch.token_ids_cpu
        )
