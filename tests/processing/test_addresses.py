# SPDX-License-Identifier: Apache-2.0
"""Media are fetched from public addresses, whatever a URL, a name server or a library makes of it.

Guarded against: a library that reads `2130706433` as an address (aiohttp 3.13 does), a name that
changes its address, a proxy that is named and not used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.processing.loading import load
from tests.processing.web import Host, serve
from vllm_glm41v_npu.processing import addresses, fetching
from vllm_glm41v_npu.processing.addresses import NotPublic, PublicSocket, is_public, literal
from vllm_glm41v_npu.processing.fetching import fetch_async
from vllm_glm41v_npu.processing.refusals import MediaRefused

HERE = "127.0.0.1"
"""Plays the internet where a test says so; 127.0.0.2 is then what is inside."""

SPELLINGS = [
    *("127.0.0.1", "localhost", "localhost.", "127.0.0.1.", "127.1", "127.0.1", "2130706433", "0"),
    *("0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "0x7f.0.0.0x1", "127.0.0.01"),
    *(
        "１２７.0.0.1",
        "①②⑦.0.0.1",
        "127。0。0。1",
        "２１３０７０６４３３",
        "me:x@127.0.0.1",
        "8.8.8.8@0",
    ),
    *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[::1%25lo]"),
    *("[0:0:0:0:0:0:0:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fe80::1%25lo]"),
]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "1")
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    Host.asked.clear()
    Host.headers_seen.clear()


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes 127.0.0.1 the only public address."""
    for module in (addresses, fetching):
        monkeypatch.setattr(module, "is_public", HERE.__eq__)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Addresses by name, which a test fills in."""
    table: dict[str, list[str]] = {}

    async def resolve(self: Any, host: str, port: int = 0, **options: Any) -> list[Any]:
        rest = {"hostname": host, "port": port, "family": 2, "proto": 0, "flags": 0}
        return [rest | {"host": address} for address in table[host]]

    monkeypatch.setattr("aiohttp.ThreadedResolver.resolve", resolve)
    return table


# --- addresses ---


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "0.0.0.0"),
        *("100.64.0.1", "100.127.255.255", "192.0.0.1", "198.18.0.1", "192.0.2.1", "224.0.0.1"),
        *("240.0.0.1", "255.255.255.255", "168.63.129.16", "::1", "::", "fe80::1%eth0", "fd00::1"),
        *("fec0::1", "ff02::1", "ff0e::1", "2001:db8::1", "2001::1", "100::1", "5f00::1"),
        *("::127.0.0.1", "::ffff:127.0.0.1", "::ffff:0:127.0.0.1", "2002:7f00:1::", "2002:a00:1::"),
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2001:4860:4860::8888", "64:ff9b::808:808", "::ffff:8.8.8.8"]
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["example.com", "a.1", "1.2.3.4.5", "x127.0.0.1", "256.1.1.1", ""])
def test_names_are_no_addresses(host: str) -> None:
    assert literal(host) is None


@pytest.mark.parametrize("host", SPELLINGS)
def test_the_machine_itself_is_not_asked(port: int, host: str) -> None:
    with pytest.raises(MediaRefused, match="no public address|not fetched"):
        load(f"http://{host}:{port}/picture")
    assert not Host.asked


@pytest.mark.parametrize("host", SPELLINGS)
@pytest.mark.parametrize("runs", [asyncio.run, uvloop.run])
def test_a_library_that_takes_every_spelling(
    port: int, host: str, runs: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the socket: nothing looks at the host, and aiohttp is as it was at 3.13."""
    monkeypatch.setattr(fetching, "literal", lambda host: None)
    monkeypatch.setattr(
        "aiohttp.connector.is_canonical_ipv4_address", lambda host: True, raising=False
    )
    with pytest.raises(MediaRefused, match="no public address|not fetched"):
        runs(fetch_async(f"http://{host}:{port}/picture", (), 1000, 5))
    assert not Host.asked


@pytest.mark.parametrize("address", [HERE, "localhost", "2130706433", "", "0.0.0.0"])
def test_the_socket_alone(port: int, address: str) -> None:
    with PublicSocket() as one, pytest.raises(NotPublic):
        one.connect((address, port))
    with PublicSocket() as one, pytest.raises(NotPublic):
        one.connect_ex((address, port))


@pytest.mark.usefixtures("internet")
@pytest.mark.parametrize("runs", [asyncio.run, uvloop.run])
def test_a_public_host_is_reached(port: int, runs: Callable[..., Any]) -> None:
    """Guards against a socket that one of the event loops cannot use."""
    assert runs(fetch_async(f"http://{HERE}:{port}/picture", (), 1000, 5)).startswith(b"\x89PNG")


# --- names ---


@pytest.mark.parametrize("host", ["a..b", "a" * 80 + ".test", "x" * 300])
def test_a_name_that_cannot_be_looked_up(host: str) -> None:
    with pytest.raises(MediaRefused, match="The file was not fetched from"):
        load(f"http://{host}/picture")


@pytest.mark.usefixtures("internet")
def test_a_name_with_a_public_and_a_private_address(port: int, names: dict[str, list[str]]) -> None:
    """Neither is what is inside connected to, nor the whole name refused."""
    for names["mixed.test"] in ([HERE, "127.0.0.2"], ["127.0.0.2", HERE]):
        assert load(f"http://mixed.test:{port}/picture").size == (8, 8)
    names["inside.test"] = ["127.0.0.2", "127.0.0.3"]
    with pytest.raises(MediaRefused, match="The host inside.test has no public address"):
        load(f"http://inside.test:{port}/picture")


@pytest.mark.usefixtures("internet")
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("runs", [asyncio.run, uvloop.run])
def test_a_private_address_beside_a_public_one(
    names: dict[str, list[str]], order: int, runs: Callable[..., Any]
) -> None:
    """The private one is not connected to either where the public one does not answer."""
    names["mixed.test"] = [HERE, "127.0.0.2"][::order]
    with serve("127.0.0.2") as port, pytest.raises(MediaRefused, match="no public|connection fail"):
        runs(fetch_async(f"http://mixed.test:{port}/picture", (), 1000, 5))
    assert not Host.asked


@pytest.mark.usefixtures("internet")
def test_a_name_that_changes(port: int, names: dict[str, list[str]]) -> None:
    """DNS rebinding: another address the second time, also after a look at the first."""
    url = f"http://changing.test:{port}/picture"
    names["changing.test"] = [HERE]
    assert load(url).size == (8, 8)
    names["changing.test"] = ["127.0.0.2"]
    with pytest.raises(MediaRefused, match="The host changing.test has no public address"):
        load(url)


@pytest.mark.usefixtures("internet")
def test_a_public_host_cannot_lead_to_a_private_one(port: int, names: dict[str, list[str]]) -> None:
    """Neither by a redirect to an address, in any spelling, nor to a name."""
    names |= {"public.test": [HERE], "inside.test": ["127.0.0.2"]}
    there = f"http://public.test:{port}"
    assert load(f"{there}/to//picture").size == (8, 8)
    for inside in ("inside.test", "127.0.0.2", "2130706434", "127.2"):
        Host.asked.clear()
        with pytest.raises(MediaRefused, match="has no public address"):
            load(f"{there}/to/http://{inside}:{port}/picture")
        assert set(Host.asked) == {f"/to/http://{inside}:{port}/picture"}
    with pytest.raises(MediaRefused, match="URL cannot be read: Invalid URL"):
        load(f"{there}/to/http://a:b/")


# --- proxies ---


def test_a_proxy_is_asked(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It resolves the name; an address that is plainly inside is refused all the same."""
    monkeypatch.setenv("http_proxy", f"http://me:secret@{HERE}:{port}")
    assert load("http://somewhere.test/a.png").size == (8, 8)
    assert set(Host.asked) == {"http://somewhere.test/a.png"}
    assert all("Proxy-Authorization" in headers for headers in Host.headers_seen)
    monkeypatch.setenv("http_proxy", f"{HERE}:{port}")
    assert load("http://somewhere.test/a.png").size == (8, 8)
    with pytest.raises(MediaRefused, match="no public address"):
        load("http://2130706433/a.png")


@pytest.mark.parametrize(
    "variables",
    [
        {"http_proxy": "https://127.0.0.1:1"},
        {"http_proxy": "HTTPS://127.0.0.1:1"},
        {"http_proxy": "wss://127.0.0.1:1"},
        {"http_proxy": "socks5://127.0.0.1:1"},
        {"http_proxy": "http://"},
        {"http_proxy": "http://[::1"},
        {"http_proxy": ""},
        {"https_proxy": "http://127.0.0.1:1"},
        {"all_proxy": "http://127.0.0.1:1"},
        {"http_proxy": "http://127.0.0.1:1", "no_proxy": "localhost,.test"},
        {"http_proxy": "http://127.0.0.1:1", "no_proxy": "*"},
        {"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "localhost, inside.test"},
    ],
)
def test_a_proxy_that_is_not_used_turns_nothing_off(
    port: int,
    names: dict[str, list[str]],
    variables: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    names |= {"localhost": [HERE], "inside.test": [HERE]}
    for host in names:
        with pytest.raises(MediaRefused, match=f"The host {host} has no public address"):
            load(f"http://{host}:{port}/picture")
    assert not Host.asked


def test_a_proxied_host_cannot_lead_past_the_proxy(
    port: int, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redirect to a host of no_proxy is connected to directly, and so looked at."""
    monkeypatch.setenv("http_proxy", f"http://{HERE}:{port}")
    monkeypatch.setenv("no_proxy", "inside.test")
    monkeypatch.setattr(Host, "do_GET", lambda self: self.answer(302, Location=self.path[-18:]))
    names["inside.test"] = [HERE]
    with pytest.raises(MediaRefused, match="The host inside.test has no public address"):
        load("http://somewhere.test/http://inside.test")


@pytest.mark.usefixtures("internet")
def test_no_password_of_netrc_is_sent(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the operator's passwords, which a URL could have sent to any host."""
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert load(f"http://{HERE}:{port}/picture").size == (8, 8)
    assert Host.headers_seen
    assert not any("Authorization" in headers for headers in Host.headers_seen)
