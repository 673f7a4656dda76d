# SPDX-License-Identifier: Apache-2.0
"""Media files fetched by http, from hosts that the operator allows, within a limit of size.

A request names addresses to which this process connects. Left unchecked, it reads what only this
machine can reach (server-side request forgery): so hosts outside `--allowed-media-domains` have to
have a public address, at every redirect, checked on the very address that is connected to. Messages
go back to the caller, and say nothing that a caller could not know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import aiohttp
from vllm import envs
from vllm.connections import _is_retryable
from yarl import URL

from vllm_glm41v_npu.processing.addresses import connector, is_public, literal, proxy_for, refused
from vllm_glm41v_npu.processing.downloads import claim
from vllm_glm41v_npu.processing.refusals import MediaRefused, check_size

_REDIRECTS = 5
_CHUNK = 1 << 16


def fetch(url: str, allowed_domains: Sequence[str], limit: int, timeout: float | None) -> bytes:
    """Fetch as `fetch_async` does, for callers without an event loop, or in the middle of one."""
    with ThreadPoolExecutor(1) as pool:
        fetched = fetch_async(url, allowed_domains, limit, timeout)
        return pool.submit(asyncio.run, fetched).result()


async def fetch_async(
    url: str, allowed_domains: Sequence[str], limit: int, timeout: float | None
) -> bytes:
    """Return the file of an http or https URL.

    As in vLLM: VLLM_MEDIA_FETCH_MAX_RETRIES tries, each with four times the time and the pause of
    the one before; VLLM_MEDIA_URL_ALLOW_REDIRECTS; proxies of the environment. Unlike there, no
    host is sent a password of ~/.netrc.

    Args:
        allowed_domains: The only hosts, whatever their address; empty for all that are public.
        limit: Bytes, of which no more are read.
        timeout: Seconds of the first try.

    Raises:
        MediaRefused: The host is not allowed, or gives no such file.
    """
    tries = max(envs.VLLM_MEDIA_FETCH_MAX_RETRIES, 1)
    target = _parsed(url)
    for attempt in range(tries):
        try:
            return await _follow(target, allowed_domains, limit, timeout and timeout * 4**attempt)
        except (aiohttp.ClientError, OSError, TimeoutError, UnicodeError) as error:
            if attempt + 1 < tries and _is_retryable(error):
                await asyncio.sleep(4**attempt)
                continue
            raise MediaRefused(
                f"The file was not fetched from {target.host}: {_reason(error)}. Check the URL, "
                "or send the file in the request, as a data URL."
            ) from error
    raise AssertionError("the last try returns or raises")


def _reason(error: BaseException) -> str:
    """Return why a fetch failed, without any address: a name server inside may have given it."""
    if isinstance(error, aiohttp.ClientResponseError):
        return f"it answered {error.status}"
    if isinstance(error, TimeoutError):
        return "it took too long"
    return "the connection failed"


async def _follow(
    target: URL, allowed_domains: Sequence[str], limit: int, timeout: float | None
) -> bytes:
    for _ in range(_REDIRECTS + 1):
        trusted = _check_host(target, allowed_domains)
        try:
            found = await _ask(target, trusted, limit, timeout)
        except (aiohttp.ClientError, OSError) as error:
            if refused(error):
                raise _private(target.host) from None
            raise
        if isinstance(found, bytes):
            return found
        if not envs.VLLM_MEDIA_URL_ALLOW_REDIRECTS:
            raise MediaRefused(
                f"{target.host} redirects elsewhere, which this server does not follow "
                "(VLLM_MEDIA_URL_ALLOW_REDIRECTS=0). Send the URL of the file itself."
            )
        target = target.join(found)
    raise MediaRefused(
        f"The file was not fetched: over {_REDIRECTS} redirects. Send the URL of the file itself."
    )


async def _ask(url: URL, trusted: bool, limit: int, timeout: float | None) -> bytes | URL:
    """Return the file of a URL, or the URL that it redirects to.

    Only a public address is connected to, unless the host is `trusted`, or a proxy stands between:
    that resolves the name itself, and is where such rules belong then.
    """
    proxy = proxy_for(url)
    session = aiohttp.ClientSession(
        connector=connector(public=not trusted and proxy is None),
        timeout=aiohttp.ClientTimeout(total=timeout),
        headers={"User-Agent": "vLLM"},
    )
    async with session, session.get(url, allow_redirects=False, proxy=proxy) as response:
        location = response.headers.get("Location")
        if 300 <= response.status < 400 and location is not None:
            return _parsed(location)
        response.raise_for_status()
        return await _read(response, limit)


def _parsed(url: str) -> URL:
    try:
        return URL(url)
    except ValueError as error:  # yarl says why, such as "Invalid IPv6 URL"
        raise MediaRefused(f"A URL cannot be read: {error}. Check how it is written.") from error


def _check_host(url: URL, allowed_domains: Sequence[str]) -> bool:
    """Return True where the operator names this host, so that its address is not checked."""
    if url.scheme not in ("http", "https"):
        raise MediaRefused(
            f"A URL of the kind {url.scheme or 'without a scheme'!r} was given; expected http, "
            "https, data or file."
        )
    if not url.host:
        raise MediaRefused("A URL names no host; expected https://HOST/PATH.")
    if allowed_domains:
        if url.host not in allowed_domains:
            raise MediaRefused(
                f"The host {url.host} is none of those that this server fetches from "
                f"(--allowed-media-domains): {', '.join(allowed_domains)}."
            )
        return True
    address = literal(url.host)
    if address is not None and not is_public(address):
        raise _private(url.host)
    return False


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Read a body within `limit`, and within the memory that `downloads.claim` grants."""
    file = BytesIO()
    claim(_checked(response.content_length or 0, limit), is_all=True)
    async for chunk in response.content.iter_chunked(_CHUNK):
        file.write(chunk)
        claim(_checked(file.tell(), limit))
    return file.getvalue()  # no copy


def _checked(size: int, limit: int) -> int:
    check_size(size, limit)
    return size


def _private(host: str | None) -> MediaRefused:
    return MediaRefused(
        f"The host {host} has no public address, and this server fetches from public ones. Send "
        "the file in the request, as a data URL; whoever runs the server can allow hosts, with "
        "--allowed-media-domains."
    )
