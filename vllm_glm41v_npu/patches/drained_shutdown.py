# SPDX-License-Identifier: Apache-2.0
"""Let a server that ends answer also the requests that have not reached its engine.

With --shutdown-timeout, vLLM 0.23.0 stops its engine's intake at SIGTERM. A request whose pictures
are still being read comes too late, and gets an empty answer with status 200. Ends when vLLM
waits for the requests of its front end first.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any

from vllm_glm41v_npu.family import is_ours
from vllm_glm41v_npu.patches import wrap

_SERVERS = ("vllm.entrypoints.openai.api_server", "__main__")
"""Modules that may call vLLM's HTTP server: of `vllm serve`, and of `python -m` with the first."""
_LAUNCHER = "vllm.entrypoints.launcher"
"""The module that defines `serve_http`."""
_PAUSE = 0.05
"""Seconds between two looks at the requests that are left."""


def apply() -> None:
    """Wait for them before the engine is stopped; in processes without a server do nothing."""
    for name in _SERVERS:
        server = sys.modules.get(name)
        serve_http = getattr(server, "serve_http", None)
        if getattr(serve_http, "__module__", None) == _LAUNCHER:  # and not a program's own
            wrap(server, "serve_http", _draining)


def _draining(serve_http: Any) -> Any:
    async def serve(app: Any, *arguments: Any, **options: Any) -> Any:
        client = app.state.engine_client
        if client is not None and is_ours(client.vllm_config.model_config):
            client.shutdown = _after_requests(app, client.shutdown)
        return await serve_http(app, *arguments, **options)

    return serve


def _after_requests(app: Any, shutdown: Callable[..., None]) -> Callable[..., None]:
    """Return an engine client's `shutdown` that first gives requests in flight their time."""

    def wait_and_shutdown(timeout: float | None = None) -> None:
        end = time.monotonic() + (timeout or 0)
        # On the event loop's own thread no request would go on; vLLM is there when all is over.
        while time.monotonic() < end and not _on_event_loop() and _requests(app):
            time.sleep(_PAUSE)
        shutdown(timeout=timeout and max(0.0, end - time.monotonic()))

    return wait_and_shutdown


def _requests(app: Any) -> int:
    """Return how many requests uvicorn has handed out and not seen answered."""
    return len(app.state.server.server_state.tasks)


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
