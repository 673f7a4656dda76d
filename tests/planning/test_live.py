# SPDX-License-Identifier: Apache-2.0
"""Reading /metrics; tests/data/vllm_metrics.txt is a real server's, of 5 answers, shortened."""

from __future__ import annotations

import re
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

from vllm_glm41v_npu.planning.live import CACHE, SAMPLES, Measured, ServerError, measure, parse

METRICS = (Path(__file__).parents[1] / "data/vllm_metrics.txt").read_text()


def doubled(text: str) -> str:
    """As of a server that went on in the same way."""
    return re.sub(
        r"(?<=} )\S+$", lambda number: str(2 * float(number[0])), text, flags=re.MULTILINE
    )


@pytest.fixture
def answers() -> list[str]:
    """What the server answers, one after the other; the last again and again."""
    return [METRICS]


@pytest.fixture
def server(answers: list[str]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/metrics"
            self.send_response(200)
            self.end_headers()
            self.wfile.write((answers.pop(0) if answers[1:] else answers[0]).encode())

        def log_message(self, *_) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_means(server):
    """Guards against a mean over the wrong count."""
    means = {
        "requests": 5,
        "prompt_tokens": 143 / 5,
        "answer_tokens": 175 / 5,
        "batch": 175 / 38,
        "queue": 0.00025279 / 5,
        "prefill": 1.51106 / 5,
        "first_token": 5.84170 / 5,
        "token": 11.36004 / (175 - 5),
        "cached": 0,
        "kv_tokens": 5461 * 128,
    }
    assert vars(measure(server)) == pytest.approx(means, rel=1e-4)


def test_a_server_with_a_key(server, monkeypatch):
    """Guards servers of `glm41v serve`, which ask for their key on /metrics too."""
    sent = []
    opened = urllib.request.urlopen

    def note(request, **_):
        sent.append(request)
        return opened(request)

    monkeypatch.setattr(urllib.request, "urlopen", note)
    measure(server, api_key="secret")
    measure(server)
    keys = [request.get_header("Authorization") for request in sent]
    assert keys == ["Bearer secret", None]


def test_an_address_as_clients_have_it(server):
    assert measure(f"{server}/v1/") == measure(server)


def test_only_what_was_meanwhile(server, answers):
    """Guards against a look at a server's present that is a look at its whole life."""
    since_start = measure(server)
    answers[:] = [METRICS, doubled(METRICS)]
    assert measure(server, 0.01) == since_start
    with pytest.raises(ServerError, match="answered no request in this time"):
        measure(server, 0.01)


def test_several_engines():
    """Guards against the figures of the last engine taken for those of all."""
    second = "".join(
        line.replace('engine="0"', 'engine="1"') + "\n"
        for line in METRICS.splitlines()
        if not line.startswith("#")
    )
    both = Measured.of(parse(METRICS + second, "a"))
    one = Measured.of(parse(METRICS, "a"))
    assert both.requests == 2 * one.requests
    assert both.kv_tokens == 2 * one.kv_tokens
    assert (both.batch, both.first_token) == (one.batch, pytest.approx(one.first_token))


def test_answers_of_one_token():
    """Guards against a division by no tokens."""
    ones = dict.fromkeys(SAMPLES, 4.0) | {CACHE: 128.0}
    assert Measured.of(ones).token is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("python_info 1.0\n", "lacks 18 of vLLM 0.23.0's metrics, such as vllm:request_prompt"),
        ("<html>\n", "cannot be read"),
    ],
)
def test_other_servers(server, answers, text, message):
    """Guards against a traceback, or zeros, for what is no vLLM."""
    answers[:] = [text]
    with pytest.raises(ServerError, match=message):
        measure(server)


def test_no_server():
    """Guards against a traceback for an address where nothing is, or that is none."""
    for address in ("http://127.0.0.1:9", "127.0.0.1:8000"):
        with pytest.raises(ServerError, match="does not answer"):
            measure(address)


def test_names_are_those_of_vllm():
    """Guards against names that another vLLM does not export."""
    spec = find_spec("vllm")
    assert spec and spec.origin
    source = (Path(spec.origin).parent / "v1/metrics/loggers.py").read_text()
    known = {*re.findall(r'name="(vllm:\w+)"', source), *re.findall(r'"(vllm:\w+_info)"', source)}
    parts = re.compile("_(sum|count|total)$")
    assert {name for name in (*SAMPLES, CACHE) if not {name, parts.sub("", name)} & known} == set()
