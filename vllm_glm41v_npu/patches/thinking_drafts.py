# SPDX-License-Identifier: Apache-2.0
"""Let a request's guessed tokens stop where its thinking would end, if a grammar follows.

vLLM 0.23.0 asks once a step whether a reasoning parser sees the thinking over. Guesses that go on
behind its end are bound by no grammar, and what is sampled after them neither. Can go when
`grammar_bitmask` asks the parser at every guess.
"""

from __future__ import annotations

import functools
from typing import Any

from vllm_glm41v_npu.patches import is_ours


def apply() -> None:
    """Cut the guesses in every scheduler that vLLM makes for this model."""
    from vllm.config import SchedulerConfig

    known = SchedulerConfig.get_scheduler_cls

    @functools.wraps(known)
    def get_scheduler_cls(config: SchedulerConfig) -> type:
        return _guessing_within_thinking(known(config))

    SchedulerConfig.get_scheduler_cls = get_scheduler_cls


@functools.cache
def _guessing_within_thinking(scheduler: Any) -> type:
    """A kind of this scheduler of vLLM's."""

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
                    guesses = drafts.draft_token_ids[number]
                    kept = _thinking(self.structured_output_manager, request, guesses)
                    drafts.draft_token_ids[number] = kept

    return Scheduler


def _thinking(manager: Any, request: Any, guesses: list[int]) -> list[int]:
    """The guesses that come before the end of the request's thinking."""
    parser = manager._get_reasoner(request)
    if parser is None or manager.enable_in_reasoning:
        return guesses
    if request.structured_output_request.reasoning_ended:
        return guesses
    text = [*request.all_token_ids, *guesses]
    if not parser.is_reasoning_end_streaming(text, guesses):
        return guesses
    before = len(text) - len(guesses)
    for count, token in enumerate(guesses):
        if parser.is_reasoning_end_streaming(text[: before + count + 1], [token]):
            return guesses[:count]
    return []  # an end that is several tokens long
