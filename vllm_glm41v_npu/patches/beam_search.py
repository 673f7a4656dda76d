# SPDX-License-Identifier: Apache-2.0
"""Let beam search end at each of the model's end tokens.

vLLM 0.23.0 knows the tokenizer's one end token there: GLM-4.1V's answers, which end at `<|user|>`
or `</answer>`, go on into questions that the model asks itself. Sampled at a temperature, a token
outside the likeliest also shifts every beam behind it to another. Ends when vLLM does both right.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from vllm_glm41v_npu.family import is_ours
from vllm_glm41v_npu.patches import wrap


def apply() -> None:
    """Search with this package's beam search, for requests and offline."""
    from vllm.entrypoints.generate.beam_search.offline import BeamSearchOfflineMixin
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin

    from vllm_glm41v_npu.decoding.beam_search import search_offline, search_online

    wrap(BeamSearchOnlineMixin, "beam_search", partial(_searching, search_online))
    wrap(BeamSearchOfflineMixin, "beam_search", partial(_searching, search_offline))


def _searching(ours: Any, known: Any) -> Any:
    def beam_search(self: Any, *arguments: Any, **options: Any) -> Any:
        search = ours if is_ours(self.model_config) else known
        return search(self, *arguments, **options)

    return beam_search
