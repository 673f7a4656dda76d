# SPDX-License-Identifier: Apache-2.0
"""What vLLM 0.23.0 itself gets wrong, set right in this one place.

Each mend says when it can go. All are safe to repeat.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from typing import Any

_WATCH = "glm41v-parent-watch"


def end_engine_with_its_server() -> None:
    """Let an engine core end when the process that started it was killed.

    vLLM's workers watch the process above them; its engine core waits for requests for ever, and
    keeps the device's memory from the next server. Can go when the engine core watches too.
    """
    parent = multiprocessing.parent_process()
    is_engine = multiprocessing.current_process().name.startswith("EngineCore")
    watches = any(thread.name == _WATCH for thread in threading.enumerate())
    if parent is None or not is_engine or watches:
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name=_WATCH, daemon=True).start()


def mend_cpu() -> None:
    """Set right what stops LoRA and speculative decoding on the CPU."""
    _leave_host_memory_unpinned()
    _take_the_samplers_new_argument()


def _leave_host_memory_unpinned() -> None:
    """Let `async_tensor_h2d` work in a CUDA build of torch, PyPI's, on a machine without a GPU.

    It pins host memory by default, which needs the driver. The CPU worker puts another function in
    its place, but vLLM's LoRA layers were imported, with the first one, before that worker. Can go
    when the default asks the platform, as vLLM's other pinned copies do.
    """
    from vllm.utils.torch_utils import async_tensor_h2d

    async_tensor_h2d.__defaults__ = (False,)


def _take_the_samplers_new_argument() -> None:
    """Let the CPU's kernel for recovered tokens be called as the rejection sampler calls it.

    The sampler passes USE_FP64_GUMBEL, which chooses the precision of a GPU's random numbers; the
    CPU kernel has no such parameter. Can go when `cpu_triton_utils` takes it.
    """
    import inspect

    from vllm.utils import cpu_triton_utils

    kernel = cpu_triton_utils.sample_recovered_tokens_kernel
    implementation = kernel.func
    if "USE_FP64_GUMBEL" in inspect.signature(implementation).parameters:
        return

    def takes_it(*arguments: Any, USE_FP64_GUMBEL: bool = False, **options: Any) -> None:
        implementation(*arguments, **options)

    kernel.func = takes_it


def end_guesses_with_thinking() -> None:
    """Let a request's guessed tokens stop where its thinking would end, if a grammar follows.

    vLLM asks once a step whether a reasoning parser sees the thinking over. Guesses that go on
    behind its end are bound by no grammar, and what is sampled after them neither. Can go when
    `grammar_bitmask` asks the parser at every guess.
    """
    from vllm.config import SchedulerConfig

    known = SchedulerConfig.get_scheduler_cls
    if hasattr(known, "__wrapped__"):
        return

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
            for number, name in enumerate(drafts.req_ids):
                request = self.requests.get(name)
                if request is not None and request.use_structured_output:
                    guesses = drafts.draft_token_ids[number]
                    kept = _thinking(self.structured_output_manager, request, guesses)
                    drafts.draft_token_ids[number] = kept

    return Scheduler


def _thinking(manager: Any, request: Any, guesses: list[int]) -> list[int]:
    """Those of the guesses that come before the end of the request's thinking."""
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
