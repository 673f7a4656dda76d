# SPDX-License-Identifier: Apache-2.0
"""MindIE's routes beside vLLM's: `--middleware vllm_glm41v_npu.serving.mindie.MindIERoutes`.

A request comes into `routes`; `request` (by the tables in `fields`) or `chat` translate it for
vLLM; `answer` takes vLLM's answer and sends what `reply` and `errors` make of it. `config` is about
MindIE's config.json, for `glm41v serve`.
"""

from vllm_glm41v_npu.serving.mindie.routes import MindIERoutes

__all__ = ["MindIERoutes"]
