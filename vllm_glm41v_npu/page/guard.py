# SPDX-License-Identifier: Apache-2.0
"""Guard of the page: requests come from the page itself, within limits; a policy for browsers.

The page has no password on this machine, so another web page in the same browser must not use it.
The browser says which page asks (`Origin`), and by which name it came (`Host`): a name of somebody
else that leads here (DNS rebinding) would make the two equal.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Collection
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MEBIBYTE = 1 << 20
EVERYWHERE = ("0.0.0.0", "::")


class Names(NamedTuple):
    """Names by which a browser may come to the page.

    host: where the page listens, as `--host` says.
    more: names that the operator allows, such as that of a proxy in front; in lower case.
    """

    host: str
    more: Collection[str] = ()

    def allow(self, name: str) -> bool:
        """Return True where a URL's host, without its port, is one of these names."""
        name = name.lower()
        if name in self.more or name in ("localhost", self.host.lower()):
            return True
        everywhere = self.host in EVERYWHERE
        try:
            address = ip_address(name)
        except ValueError:
            return everywhere and name == socket.gethostname().lower()
        return everywhere or address.is_loopback


class OwnPageOnly:
    """ASGI middleware that refuses requests of other pages, and those by a foreign name."""

    def __init__(self, app: ASGIApp, names: Names) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wrong = None if scope["type"] == "lifespan" else self._wrong(Headers(scope=scope))
        if wrong is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": wrong[:120]})
        else:
            await PlainTextResponse(wrong, 403)(scope, receive, send)

    def _wrong(self, headers: Headers) -> str | None:
        """Return a sentence about names of a request that are not the page's; else None."""
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        host = hosts[0] if len(hosts) == 1 else ""
        if not self._names.allow(_name(f"//{host}")):
            return (
                f"This page is not served under the name {host[:100]!r}. Open it by the address "
                "that `glm41v page` printed, or start that with --allow-host NAME."
            )
        for origin in origins:
            if origin.partition("://")[2].lower() == host.lower():
                continue
            if _name(origin) not in self._names.more:
                return (
                    f"Another page, of {origin[:100]!r}, asks this one, which answers its own "
                    "alone. If a proxy in front has that name, start `glm41v page` with "
                    "--allow-host NAME."
                )
        return None


def _name(url: str) -> str:
    """Return the host of a URL; an empty text where there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


class Limits(NamedTuple):
    """Bytes of a request's body, and what a folder of uploads may hold."""

    upload: int = 512 * MEBIBYTE
    other: int = 16 * MEBIBYTE
    kept: int = 8192 * MEBIBYTE
    files: int = 10_000


LIMITS = Limits()


class BoundedBodies:
    """ASGI middleware that refuses bodies which are too large, and keeps nothing of them.

    Args:
        folder: Where uploads are kept.
    """

    def __init__(self, app: ASGIApp, folder: Path, limits: Limits = LIMITS) -> None:
        self._app, self._folder, self._limits = app, folder, limits
        self._coming = 0
        """Bytes of the uploads that are being received."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length, is_upload = headers.get("content-length", ""), scope["path"].endswith("/upload")
        if not length.isdecimal() or "transfer-encoding" in headers:
            said = "This request does not say how large it is; expected Content-Length."
            await PlainTextResponse(said, 411)(scope, receive, send)
            return
        self._coming += int(length) * is_upload
        try:
            wrong = await self._wrong(int(length), is_upload)
            if wrong is None:
                await self._app(scope, receive, send)
                return
            while (await receive()).get("more_body"):  # browsers show no answer before their end
                pass
            await PlainTextResponse(wrong, 413)(scope, receive, send)
        finally:
            self._coming -= int(length) * is_upload

    async def _wrong(self, length: int, is_upload: bool) -> str | None:
        """Return a sentence about a body that is not received; None where it is."""
        most = self._limits.upload if is_upload else self._limits.other
        if length > most + MEBIBYTE * is_upload:  # there is a form around the files
            return (
                f"{length / MEBIBYTE:,.1f} MiB were sent at once; this page takes "
                f"{most // MEBIBYTE} MiB. Send a smaller file, or fewer at a time."
            )
        if not is_upload:
            return None
        files, kept = await asyncio.to_thread(_holds, self._folder)
        if files >= self._limits.files or kept + self._coming > self._limits.kept:
            return (
                f"This page keeps {files:,} uploads of {kept / MEBIBYTE:,.0f} MiB together, and "
                f"takes {self._limits.files:,} and {self._limits.kept // MEBIBYTE:,} MiB. They are "
                "removed after a day, and when `glm41v page` is started anew."
            )
        return None


def _holds(folder: Path) -> tuple[int, int]:
    """Return the number of files in a folder and below, and their bytes together."""
    files = bytes_ = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                bytes_ += os.stat(os.path.join(place, name)).st_size
            except FileNotFoundError:  # removed in the meantime
                continue
            files += 1
    return files, bytes_


POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
)


class NothingFromElsewhere:
    """ASGI middleware that lets browsers load nothing from elsewhere, and nobody frame the page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        await self._app(scope, receive, send_with_policy if scope["type"] == "http" else send)
