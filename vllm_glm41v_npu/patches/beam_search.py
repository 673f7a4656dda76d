# SPDX-License-Identifier: Apache-2.0
"""Let beam search end at each of the model's end tokens.

vLLM 0.23.0 knows the tokenizer's one end token there: GLM-4.1V's answers, which end at `<|user|>`
or `</answer>`, go on into questions that the model asks itself. Sampled at a temperature, a token
outside the likeliest also shifts every beam behind it to another. Can go when both are mended.
"""

from __future__ import annotations

import functools
from typing import Any

from vllm_glm41v_npu.patches import is_ours


def apply() -> None:
    """Search so for requests, and offline."""
    from vllm.entrypoints.generate.beam_search.offline import BeamSearchOfflineMixin
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin

    from vllm_glm41v_npu.decoding.beam_search import search_offline, search_online

    for owner, ours in (
        (BeamSearchOnlineMixin, search_online),
        (BeamSearchOfflineMixin, search_offline),
    ):
        owner.beam_search = _searching(ours, owner.beam_search)


def _searching(ours: Any, known: Any) -> Any:
    @functools.wraps(known)
    def beam_search(self: Any, *arguments: Any, **options: Any) -> Any:
        search = ours if is_ours(self.model_config) else known
        return search(self, *arguments, **options)

    return beam_search
