# SPDX-License-Identifier: Apache-2.0
"""Let beam search end at each of the model's end tokens.

vLLM 0.23.0 knows the tokenizer's one end token there: GLM-4.1V's answers, which end at `<|user|>`
or `</answer>`, go on into questions that the model asks itself. Sampled at a temperature, a token
outside the likeliest also shifts every beam behind it to another. Can go when both are mended.
"""

from __future__ import annotations

from typing import Any


def apply() -> None:
    """Search so for requests, and offline."""
    from vllm.entrypoints.generate.beam_search.offline import BeamSearchOfflineMixin
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin

    def online(self: Any, *arguments: Any, **options: Any) -> Any:
        from vllm_glm41v_npu.decoding.beam_search import search_online

        return search_online(self, *arguments, **options)

    def offline(self: Any, *arguments: Any, **options: Any) -> Any:
        from vllm_glm41v_npu.decoding.beam_search import search_offline

        return search_offline(self, *arguments, **options)

    BeamSearchOnlineMixin.beam_search = online
    BeamSearchOfflineMixin.beam_search = offline
