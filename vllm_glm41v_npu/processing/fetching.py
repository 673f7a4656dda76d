# SPDX-License-Identifier: Apache-2.0
"""Media files by URL, from where the operator allows it, in sizes that a server can bear.

A request names addresses to which this process connects. Left unchecked, it reads what only this
machine can reach (server-side request forgery): so hosts outside `--allowed-media-domains` have to
have a public address, at every redirect, checked on the very address that is connected to. Messages
go back to the caller, and say nothing that a caller could not know.
"""

from __future__ import annotations

import asyncio
import binascii
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote

import aiohttp
import pybase64
from vllm import envs
from vllm.connections import _is_retryable
from yarl import URL

from vllm_glm41v_npu.processing.addresses import connector, is_public, literal, proxy_for, refused
from vllm_glm41v_npu.processing.downloads import claim
from vllm_glm41v_npu.processing.limits import mebibytes

MAX_MEGABYTES = {"VLLM_GLM41V_NPU_MAX_IMAGE_MB": 100, "VLLM_GLM41V_NPU_MAX_VIDEO_MB": 512}
"""Environment variables of the largest files, and their defaults, in MiB."""

_REDIRECTS = 5
_CHUNK = 1 << 16
_NOT_BASE64 = re.compile("[^A-Za-z0-9+/]")


class MediaRefused(ValueError):
    """A file was not loaded; the message tells the caller why, and what to do."""


def max_bytes(variable: str) -> int:
    """The largest file by the environment variable, one of MAX_MEGABYTES.

    Raises:
        ValueError: It is set to something else than a positive number.
    """
    return mebibytes(variable, MAX_MEGABYTES[variable])


def fetch(url: str, allowed_domains: Sequence[str], limit: int, timeout: float | None) -> bytes:
    """`fetch_async` for callers without an event loop, or in the middle of one."""
    with ThreadPoolExecutor(1) as pool:
        fetched = fetch_async(url, allowed_domains, limit, timeout)
        return pool.submit(asyncio.run, fetched).result()


async def fetch_async(
    url: str, allowed_domains: Sequence[str], limit: int, timeout: float | None
) -> bytes:
    """What a http or https URL holds.

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
    """What of a failed fetch may be told: no address, which a name server inside may have given."""
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
    """What a URL holds, or where it redirects to.

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
    except ValueError as error:  # what yarl says of it, such as "Invalid IPv6 URL"
        raise MediaRefused(f"A URL cannot be read: {error}. Check how it is written.") from error


def _check_host(url: URL, allowed_domains: Sequence[str]) -> bool:
    """Whether the operator names this host, so that its address is not looked at."""
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


def check_size(size: int, limit: int) -> None:
    """Raise MediaRefused if a file has more bytes than the limit."""
    if size > limit:
        raise MediaRefused(
            f"The file is larger than {limit >> 20} MiB, the most that this server loads. Send a "
            "smaller one."
        )


def _private(host: str | None) -> MediaRefused:
    return MediaRefused(
        f"The host {host} has no public address, and this server fetches from public ones. Send "
        "the file in the request, as a data URL; whoever runs the server can allow hosts, with "
        "--allowed-media-domains."
    )


def find_file(path: Path, folder: Path, limit: int) -> Path:
    """The file itself, in `folder` or in a folder inside it, links followed.

    Raises:
        MediaRefused: It is not there, is no file, is too large, or is outside, be it by `..` or by
            a link.
    """
    try:
        resolved = path.resolve(strict=True)
        if not resolved.is_relative_to(folder.resolve()):
            raise FileNotFoundError
        if not resolved.is_file():  # reading a pipe would never end
            raise MediaRefused(f"{path} is no file. Give a picture or a video.")
        check_size(resolved.stat().st_size, limit)
        return resolved
    except MediaRefused:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # loops of links, zeros in a name
        raise _missing(path) from error


def read_file(path: Path, folder: Path, limit: int) -> bytes:
    """What a file holds.

    Raises:
        MediaRefused: As in `find_file`, or it cannot be read.
    """
    try:
        return find_file(path, folder, limit).read_bytes()
    except OSError as error:
        raise _missing(path) from error


def _missing(path: Path) -> MediaRefused:
    return MediaRefused(
        f"There is no file {path} that this server may read. Give one that is in the folder of "
        "--allowed-local-media-path, links followed."
    )


def split_data_url(url: str, limit: int) -> tuple[str, str]:
    """The media type and the base64 text of a data URL (RFC 2397).

    Raises:
        MediaRefused: It is not in base64, or too large.
    """
    head, comma, data = url[len("data:") :].partition(",")
    media_type, *parameters = (part.strip() for part in head.split(";"))
    if not comma or [part.lower() for part in parameters[-1:]] != ["base64"]:
        raise MediaRefused(
            "A data URL is not in base64; expected data:image/png;base64, or "
            "data:video/mp4;base64, and then the file."
        )
    check_size(len(data) * 3 // 4, limit)
    return media_type, data


_URL_SAFE = str.maketrans("-_", "+/", "\t\n\v\f\r ")


def decode_base64(text: str) -> bytes:
    """The bytes of base64, as people send it: also broken into lines, of the URL-safe alphabet,
    percent-encoded, or without the = at its end.

    Raises:
        MediaRefused: Something else is in it, or it was cut off.
    """
    try:
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass  # it takes a closer look
    plain = (unquote(text) if "%" in text else text).translate(_URL_SAFE).rstrip("=")
    if (odd := _NOT_BASE64.search(plain)) is not None:
        raise MediaRefused(
            f"The data is not base64: it has {odd[0]!r} at letter {odd.start() + 1}; expected "
            "letters, digits, + and /. Send the file encoded in base64."
        )
    if len(plain) % 4 == 1:
        raise MediaRefused(
            f"The data is not whole base64: its {len(plain)} letters are one too many or some too "
            "few. Check whether it was cut off."
        )
    return pybase64.b64decode(plain + "=" * (-len(plain) % 4))
