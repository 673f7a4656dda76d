# SPDX-License-Identifier: Apache-2.0
"""Load the media of one request together, and stop with it.

vLLM 0.23.0 loads the pictures and videos of a chat with `asyncio.gather`, each on its own: nothing
says how much memory they take together, and when one is refused or the client leaves, the others
are loaded on. Here all that `render_chat_async` loads is one request of `processing.budget`. Ends
when vLLM limits the memory of a request's media itself.
"""

from __future__ import annotations

from typing import Any

from vllm_glm41v_npu.patches import wrap


def apply() -> None:
    """Open a request of the budget around each chat that is rendered."""
    from vllm.renderers.base import BaseRenderer

    wrap(BaseRenderer, "render_chat_async", _as_one_request)


def _as_one_request(render: Any) -> Any:
    from vllm_glm41v_npu.processing.budget import process_budget

    async def render_as_one_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        with process_budget().request():
            return await render(self, *args, **kwargs)

    return render_as_one_request
