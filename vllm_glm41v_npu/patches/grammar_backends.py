# SPDX-License-Identifier: Apache-2.0
"""Give each request's grammar to the library that its front end has checked it with.

vLLM 0.23.0 (`--structured-outputs-config` "auto") checks a grammar or schema with xgrammar, then
with guidance if xgrammar refuses it; but its engine compiles all with the library of the first
request. One grammar that guidance alone takes, such as `root ::= ` with nothing behind it, ends
the engine, and the server with it. Ends when the engine keeps a backend for each name.
"""

from __future__ import annotations

import copy
from typing import Any

from vllm_glm41v_npu.family import is_ours
from vllm_glm41v_npu.patches import wrap


def apply() -> None:
    """Keep a backend for each name in the engine's manager."""
    from vllm.v1.structured_output import StructuredOutputManager

    wrap(StructuredOutputManager, "grammar_init", _keeping_backends)


def _keeping_backends(start: Any) -> Any:
    def grammar_init(self: Any, request: Any) -> None:
        if request.structured_output_request is None or not is_ours(self.vllm_config.model_config):
            start(self, request)
            return
        name = request.sampling_params.structured_outputs._backend
        backends = vars(self).setdefault("backends_by_name", {})
        ours = copy.copy(self)  # the thread that compiles keeps the backend of this request
        ours.backend = backends.get(name)
        start(ours, request)
        backends[name] = ours.backend
        if self.backend is None:
            self.backend = ours.backend  # whose token masks, alike in all of them, are used

    return grammar_init
