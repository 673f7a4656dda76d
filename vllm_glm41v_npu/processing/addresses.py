# SPDX-License-Identifier: Apache-2.0
"""Connections to public addresses alone, whatever a URL or a name server says.

The address is judged in the socket's own `connect`, the last step before the system's: so nothing
depends on how a library reads a host (`2130706433` is 127.0.0.1 to some), resolves a name, or
caches what it found. A name with a public and a private address is reached by the public one.
"""

from __future__ import annotations

import ipaddress
import socket
import urllib.request
from contextlib import suppress
from functools import cache
from typing import Any

import aiohttp
from vllm.logger import init_logger
from yarl import URL

logger = init_logger(__name__)

_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""The IPv6 addresses that IANA gives out; others are link-local, site-local and the like."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_MACHINE_SERVICES = {ipaddress.ip_address("168.63.129.16")}
"""Addresses that are public by the registries, and yet a service of the machine's host (Azure)."""


class NotPublic(OSError):
    """A connection was not made, as its address is not public."""


def is_public(address: str) -> bool:
    """Return True for a public IP address, by IANA's registries.

    IPv6 addresses that stand for an IPv4 one (mapped, 6to4, NAT64) are judged by that.

    Raises:
        ValueError: It is no IP address in the usual form.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip not in _GLOBAL_UNICAST:
            return False
    return ip.is_global and not ip.is_multicast and ip not in _MACHINE_SERVICES


def literal(host: str) -> str | None:
    """Return the IP address that a host spells out, in the usual form; None for a name.

    Sockets take more spellings of IPv4 than the usual one: `127.1`, `0x7f000001`, `0177.0.0.1`.
    """
    with suppress(ValueError):
        return str(ipaddress.ip_address(host.partition("%")[0]))
    with suppress(OSError, ValueError):
        return socket.inet_ntoa(socket.inet_aton(host.removesuffix(".")))
    return None


class PublicSocket(socket.socket):
    """A socket that connects to public addresses alone, given as numbers."""

    def connect(self, address: Any) -> None:
        self._check(address)
        super().connect(address)

    def connect_ex(self, address: Any) -> int:
        self._check(address)
        return super().connect_ex(address)

    def _check(self, address: Any) -> None:
        with suppress(ValueError):  # a name, which the system would look up
            if is_public(address[0]):
                return
        raise NotPublic("no public address")


def connector(public: bool) -> aiohttp.TCPConnector:
    """Return a connector for one request, to public addresses alone or to any."""
    kind = PublicSocket if public else socket.socket
    return aiohttp.TCPConnector(use_dns_cache=False, socket_factory=lambda info: kind(*info[:3]))


def refused(error: BaseException) -> bool:
    """Return True where a request failed because its address is not public."""
    return isinstance(getattr(error, "os_error", error), NotPublic)


def proxy_for(url: URL) -> URL | None:
    """Return the proxy of the environment for a URL; None where its host is connected to directly.

    Only this function decides: aiohttp is told, and reads no environment itself. It uses
    `http_proxy` and `https_proxy`, but for hosts of `no_proxy`, and only proxies that are spoken to
    by http, as aiohttp 3.13 to 3.14 does.
    """
    value = urllib.request.getproxies().get(url.scheme)
    if not value or urllib.request.proxy_bypass(url.host or ""):
        return None
    return _http_proxy(f"{url.scheme}_proxy", value)


@cache
def _http_proxy(variable: str, value: str) -> URL | None:
    proxy = None
    with suppress(ValueError):
        proxy = URL(value if "://" in value else f"http://{value}")
    if proxy is None or proxy.scheme != "http" or not proxy.host:
        kind = proxy.scheme if proxy is not None else "another form"
        logger.warning(
            "%s names a proxy of the kind %s, which is not used; expected http://HOST:PORT. Media "
            "are fetched without a proxy, from public addresses.",
            variable,
            kind,
        )
        return None
    return proxy
