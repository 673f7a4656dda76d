# SPDX-License-Identifier: Apache-2.0
"""Data URLs: base64 as people send it, or a true refusal."""

from __future__ import annotations

import base64
import random
import textwrap

import pytest

from tests.processing.loading import load, png
from vllm_glm41v_npu.processing.connector import Glm41vMediaConnector
from vllm_glm41v_npu.processing.data_urls import decode_base64
from vllm_glm41v_npu.processing.fetching import fetch
from vllm_glm41v_npu.processing.refusals import MediaRefused

DATA = bytes(range(256)) * 5
PLAIN = base64.b64encode(DATA).decode()
FORMS = {
    "plain": PLAIN,
    "lines": "\n".join(textwrap.wrap(PLAIN, 76)),
    "lines of Windows": "\r\n".join(textwrap.wrap(PLAIN, 76)) + "\r\n",
    "spaces": " " + PLAIN[:40] + " \t" + PLAIN[40:],
    "URL-safe": base64.urlsafe_b64encode(DATA).decode(),
    "no end": PLAIN.rstrip("="),
    "percent": PLAIN.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
    "percent lines": "%0A".join(textwrap.wrap(PLAIN, 76)),
    "nothing": "",
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    """Newlines were refused as bad base64 in pictures, and read in videos."""
    assert decode_base64(FORMS[form]) == (DATA if FORMS[form] else b"")


REFUSED = {
    "letter": (PLAIN[:9] + "!" + PLAIN[9:], "it has '!' at letter 10"),
    "other writing": (PLAIN[:4] + "\u00e9" + PLAIN[4:], "it has '\u00e9' at letter 5"),
    "cut off": (PLAIN.rstrip("=")[:-2], "one too many or some too few"),
    "end in the middle": (PLAIN[:4] + "==" + PLAIN[4:], "it has '=' at letter 5"),
    "another data URL": ("data:image/png;base64," + PLAIN, "it has ':' at letter 5"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_refusals(form: str) -> None:
    text, message = REFUSED[form]
    with pytest.raises(MediaRefused, match=message):
        decode_base64(text)


def test_any_text_is_read_or_refused() -> None:
    """Property: nothing else, and what is read is what Python reads."""
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(rng.choice("AZaz09+/-_=\n %2B!\u00e9") for _ in range(rng.randrange(12)))
        try:
            found = decode_base64(text)
        except MediaRefused:
            continue
        assert isinstance(found, bytes)


@pytest.mark.parametrize("form", ["lines", "URL-safe", "spaces", "no end"])
def test_a_picture(form: str) -> None:
    encoded = base64.b64encode(png()).decode()
    text = {
        "lines": "\n".join(textwrap.wrap(encoded, 20)),
        "URL-safe": encoded.replace("+", "-").replace("/", "_"),
        "spaces": " ".join(textwrap.wrap(encoded, 20)),
        "no end": encoded.rstrip("="),
    }[form]
    assert load("data:image/png;base64," + text).size == (8, 8)
    assert load("data: image/png ; base64, " + text).size == (8, 8)


def test_ways_to_write_a_data_url() -> None:
    """Guards spaces around a URL and capital letters: told that they are no URL, or no base64."""
    data = png()
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    connector = Glm41vMediaConnector()
    for form in (url, f" {url}\n", url.replace("data", "DATA"), url.replace("base64", "BASE64")):
        assert connector.fetch_image(form).size == (8, 8)


def test_a_url_without_a_host() -> None:
    """Guards a refusal that expects what was given: http."""
    for url in ("http:///a.png", "https://"):
        with pytest.raises(MediaRefused, match="names no host"):
            fetch(url, (), 1 << 20, 1)
