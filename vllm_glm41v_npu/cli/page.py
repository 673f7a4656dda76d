# SPDX-License-Identifier: Apache-2.0
"""`glm41v page`: a chat page in the browser."""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated
from urllib.parse import urlsplit

import typer

from vllm_glm41v_npu.cli.terminal import fail

LOOPBACK = "localhost,127.0.0.1,::1"


def page(
    server: Annotated[
        str, typer.Option(help="The OpenAI-compatible server to ask.")
    ] = "http://127.0.0.1:8000",
    model: Annotated[
        str | None, typer.Option(help="Its name in requests; the first that the server lists.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="VLLM_API_KEY", help="The server's; others here see an option."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Whoever reaches this address may use the server by the page.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Another name by which browsers come here, such as a proxy's."),
    ] = None,
) -> None:
    """Chat with a model that is served, about pictures and clips, in the browser.

    Exits with 2 where an argument is wrong, and with 1 where gradio is missing or the port taken.
    """
    address = _address(server)
    if find_spec("gradio") is None:
        fail(
            "gradio is not installed in this Python, and the page is made with it: "
            "pip install 'vllm-glm41v-npu[page]'.",
            code=1,
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end as by Ctrl-C: tidy up
    with TemporaryDirectory(prefix="glm41v-page-") as folder:  # nobody else may read it
        _set_up_gradio(folder)
        from vllm_glm41v_npu.page.app import build, launch
        from vllm_glm41v_npu.page.guard import Names
        from vllm_glm41v_npu.page.server import Server

        typer.echo(f"The page is at http://{host}:{port}, and asks the server at {address}.")
        try:
            names = Names(host, {name.lower() for name in allow_host or ()})
            launch(build(Server(address, api_key, model)), names, port, Path(folder))
        except OSError:  # gradio says which of its own arguments to change
            fail(
                f"The page cannot be served at {host}:{port}: another program has this port, or "
                "this machine has no such address. Choose another by --port or --host.",
                code=1,
            )


def _address(server: str) -> str:
    """Return the server's address without a trailing /v1, which other clients want."""
    parts = urlsplit(server)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise typer.BadParameter(
            f"{server!r} is no address; expected one such as http://127.0.0.1:8000",
            param_hint="--server",
        )
    return server.rstrip("/").removesuffix("/v1").rstrip("/")


def _set_up_gradio(folder: str) -> None:
    """Set what gradio reads on import: the folder of uploads, and that it reports to nobody."""
    os.environ["GRADIO_TEMP_DIR"] = folder
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    for name in ("no_proxy", "NO_PROXY"):  # or a proxy is asked for the page, and for the server
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), LOOPBACK)))
