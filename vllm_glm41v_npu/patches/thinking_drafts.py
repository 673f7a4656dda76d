# SPDX-License-Identifier: Apache-2.0
"""Let a request's draft tokens stop where its thinking would end, if a grammar follows.

vLLM 0.23.0 asks once a step whether a reasoning parser sees the thinking over. Draft
tokens behind its end are bound by no grammar, and what is sampled after them neither. Ends when
`grammar_bitmask` asks the parser at every draft token.
"""

from __future__ import annotations

import functools
from typing import Any

from vllm_glm41v_npu.family import is_ours
from vllm_glm41v_npu.patches import wrap


def apply() -> None:
    """Cut the draft tokens in every scheduler that vLLM makes for this model."""
    from vllm.config import SchedulerConfig

    wrap(SchedulerConfig, "get_scheduler_cls", _cutting)


def _cutting(known: Any) -> Any:
    def get_scheduler_cls(config: Any) -> type:
        return _drafting_within_thinking(known(config))

    return get_scheduler_cls


@functools.cache
def _drafting_within_thinking(scheduler: Any) -> type:
    """Return a subclass of a scheduler of vLLM's that cuts draft tokens."""

    class Scheduler(scheduler):
        def update_draft_token_ids(self, drafts: Any) -> None:
            self._cut(drafts)
            super().update_draft_token_ids(drafts)

        def update_draft_token_ids_in_output(self, drafts: Any, scheduled: Any) -> None:
            self._cut(drafts)
            super().update_draft_token_ids_in_output(drafts, scheduled)

        def _cut(self, drafts: Any) -> None:
            if not is_ours(self.vllm_config.model_config):
                return
            for number, name in enumerate(drafts.req_ids):
                request = self.requests.get(name)
                if request is not None and request.use_structured_output:
                    drafted = drafts.draft_token_ids[number]
                    kept = _within_thinking(self.structured_output_manager, request, drafted)
                    drafts.draft_token_ids[number] = kept

    return Scheduler


def _within_thinking(manager: Any, request: Any, drafts: list[int]) -> list[int]:
    """Return the draft tokens that come before the end of the request's thinking."""
    parser = manager._get_reasoner(request)
    if parser is None or manager.enable_in_reasoning:
        return drafts
    if request.structured_output_request.reasoning_ended:
        return drafts
    text = [*request.all_token_ids, *drafts]
    if not parser.is_reasoning_end_streaming(text, drafts):
        return drafts
    before = len(text) - len(drafts)
    for count, token in enumerate(drafts):
        if parser.is_reasoning_end_streaming(text[: before + count + 1], [token]):
            return drafts[:count]
    return []  # an end that is several tokens long
