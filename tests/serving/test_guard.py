# SPDX-License-Identifier: Apache-2.0
"""The API key on every route, and limits of bodies: the guard, without an engine."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import pytest

from tests.serving.asgi import BEARER, KEY, ask, served_with
from vllm_glm41v_npu.serving import bodies
from vllm_glm41v_npu.serving.bodies import MAX_BODY_VARIABLE, max_body_bytes
from vllm_glm41v_npu.serving.guard import Guard, is_authorized


@pytest.fixture(autouse=True)
def no_key_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


class Inner:
    """Reads a whole body, as FastAPI does, and answers with its length."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.read = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.requests import Request
        from starlette.responses import PlainTextResponse

        self.paths.append(scope["path"])
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            return
        self.read = len(await Request(scope, receive).body())
        await PlainTextResponse(str(self.read))(scope, receive, send)


# --- the key ---

GUARDED = [
    "/v1/completions",
    "/invocations",
    "/tokenize",
    "/detokenize",
    "/load",
    "/version",
    "/metrics",
    "/ping",
    "/scale_elastic_ep",
    "/generate",
    "/docs",
    "/openapi.json",
    "/",
    "//v1/completions",
    "//health",
    "/health/",
    "/health//",
    "/HEALTH",
    "/Health",
    "/healthz",
    "/health/../invocations",
    "/x/../v1/models",
    "/V1/completions",
    "/health;x",
    "/health%2f",
    "http://host/health",
    "/./health",
    "*",
]


@pytest.mark.parametrize("path", ["", *GUARDED])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD", "BREW"])
def test_no_route_without_a_key(path: str, method: str) -> None:
    """Guards every path but one, also those that are written oddly, before a body is read."""
    inner = Inner()
    answer = ask(Guard(inner), path, method=method, body=[b"a"] * 9)
    assert (answer.status, answer.json, answer.read) == (401, {"error": "Unauthorized"}, 0)
    assert inner.paths == []
    assert ask(Guard(inner), path, [BEARER], method=method).status == 200
    assert inner.paths == [path]


@pytest.mark.parametrize(
    ("root_path", "path", "status"),
    [
        ("", "/health", 200),
        ("/api", "/api/health", 200),
        ("/api", "/health", 200),  # behind a proxy that takes the root path off
        ("/api", "/apihealth", 401),
        ("/api", "/api/invocations", 401),
        ("/health", "/health/invocations", 401),
        ("/health", "/health", 401),
        ("/invocations", "/health", 200),
    ],
)
def test_the_health_check_is_open(root_path: str, path: str, status: int) -> None:
    """Guards load balancers, and against a root path that opens another route."""
    answer = ask(Guard(Inner()), path, method="GET", root_path=root_path)
    assert answer.status == status


HEADERS = {
    "right": ([BEARER], True),
    "small letters": ([(b"authorization", b"bearer secret")], True),
    "second key": ([(b"authorization", b"Bearer other")], True),
    "beginning": ([(b"authorization", b"Bearer secre")], False),
    "longer": ([(b"authorization", b"Bearer secretx")], False),
    "spaces": ([(b"authorization", b"Bearer  secret")], False),
    "other case": ([(b"authorization", b"Bearer Secret")], False),
    "another scheme": ([(b"authorization", b"Basic secret")], False),
    "no scheme": ([(b"authorization", b"secret")], False),
    "empty": ([(b"authorization", b"")], False),
    "no bytes": ([(b"authorization", b"Bearer ")], False),
    "bytes": ([(b"authorization", b"Bearer \xff\xfe\x00")], False),
    "another header": ([(b"x-api-key", b"secret")], False),
    "none": ([], False),
    "the first counts": ([(b"authorization", b"Bearer x"), BEARER], False),
    "two that are right": ([BEARER, (b"authorization", b"Bearer x")], True),
}


@pytest.mark.parametrize("case", HEADERS)
def test_keys(case: str) -> None:
    """Guards which headers hold a key, and that vLLM says the same."""
    from starlette.datastructures import Headers
    from vllm.entrypoints.serve.utils.server_utils import AuthenticationMiddleware

    headers, expected = HEADERS[case]
    scope = {"type": "http", "headers": headers, "app": served_with(KEY, "other")}
    assert is_authorized(scope) is expected
    vllm = AuthenticationMiddleware(Inner(), [KEY, "other"])
    assert vllm.verify_token(Headers(scope=scope)) is expected


def test_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards VLLM_API_KEY, which --api-key overrides; and a server without any key."""
    scope = {"headers": [BEARER], "app": served_with()}
    assert is_authorized({"headers": [], "app": served_with()})
    monkeypatch.setenv("VLLM_API_KEY", "of the environment")
    assert not is_authorized(scope)
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    assert is_authorized(scope)
    assert not is_authorized({"headers": [BEARER], "app": served_with("of the command")})


def test_a_browsers_preflight() -> None:
    """Guards pages of other origins: browsers send no key with it, and CORS answers it."""
    headers = [(b"Origin", b"https://page"), (b"Access-Control-Request-Method", b"POST")]
    assert ask(Guard(Inner()), "/v1/completions", headers, method="OPTIONS").status == 200
    assert ask(Guard(Inner()), "/v1/completions", headers, method="POST").status == 401
    assert ask(Guard(Inner()), "/v1/completions", headers[:1], method="OPTIONS").status == 401


@pytest.mark.parametrize("path", ["/v1/realtime", "/health", "//v1/realtime"])
def test_websockets(path: str) -> None:
    """Guards sockets, which have no status: the handshake is refused."""
    refused = ask(Guard(Inner()), path, kind="websocket")
    assert refused.messages == [{"type": "websocket.close", "code": 1008}]
    accepted = ask(Guard(Inner()), path, [BEARER], kind="websocket")
    assert accepted.messages == [{"type": "websocket.accept"}]


def test_a_server_without_a_key_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Guards an operator who believes that the guard alone is enough."""

    async def nothing(*_: Any) -> Any:
        pass

    async def start(*keys: str) -> None:
        await Guard(nothing)({"type": "lifespan", "app": served_with(*keys)}, nothing, nothing)

    caplog.set_level(logging.WARNING, "vllm.vllm_glm41v_npu.serving.guard")
    logging.getLogger("vllm").addHandler(caplog.handler)  # vLLM's loggers do not propagate
    try:
        asyncio.run(start(KEY))
        assert "There is no API key" not in caplog.text
        asyncio.run(start())
        assert "There is no API key" in caplog.text
    finally:
        logging.getLogger("vllm").removeHandler(caplog.handler)


def test_every_route_of_vllm() -> None:
    """Guards vLLM's own application, without an engine: no route of it answers without a key."""
    from vllm.entrypoints.openai.api_server import build_app
    from vllm.entrypoints.openai.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    guard = "vllm_glm41v_npu.serving.guard.Guard"
    words = ["--api-key", KEY, "--middleware", guard, "--root-path", "/prefix"]
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
    app = build_app(args, ("generate",))
    paths = {*app.openapi()["paths"], "/metrics", "/docs", "/openapi.json"}
    assert {"/invocations", "/tokenize", "/metrics", "/v1/models"} <= paths

    async def statuses(**headers: str) -> dict[tuple[str, str], int]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
            return {
                (method, path): (await client.request(method, path, headers=headers)).status_code
                for path in paths | {f"/prefix{path}" for path in paths}
                for method in ("GET", "POST")
            }

    open_paths = {"/health", "/prefix/health"}
    for (method, path), status in asyncio.run(statuses()).items():
        assert (status == 401) is (path not in open_paths), (method, path, status)
    right = asyncio.run(statuses(Authorization=f"Bearer {KEY}"))
    assert 401 not in right.values()


# --- bodies ---


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of 1 MiB, 100 values and 50 objects."""
    monkeypatch.setenv(MAX_BODY_VARIABLE, "1")
    monkeypatch.setattr(bodies, "MAX_OBJECTS", 50)
    monkeypatch.setattr(bodies, "MAX_VALUES", 100)


MIB = 1 << 20


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("path", ["/v1/completions", "/invocations", "/health", "/no/such"])
def test_a_body_that_is_too_large(path: str, announced: bool) -> None:
    """Guards memory, whether the length is said before or comes in pieces."""
    body = [b"a" * (MIB // 2)] * 5
    headers = [BEARER] + [(b"content-length", b"%d" % (5 * MIB // 2))] * announced
    inner = Inner()
    answer = ask(Guard(inner), path, headers, body)
    assert answer.status == 413
    error = answer.json["error"]
    assert error["code"] == 413
    assert "larger than 1 MiB" in error["message"]
    assert MAX_BODY_VARIABLE in error["message"]
    assert inner.read == 0
    assert answer.read == 5 * MIB // 2  # the client may send to the end, and then reads the answer


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("value", [b"{},", b"[],", b'"a",', b'{"a":{"b":[', b"1,1"])
def test_a_body_of_too_many_values(value: bytes) -> None:
    """Guards the time in which a parser stops all requests: bytes alone do not bound it."""
    answer = ask(Guard(Inner()), headers=[BEARER], body=[value * 60, value * 60])
    assert answer.status == 413
    assert "more than 100 values" in answer.json["error"]["message"]
    assert ask(Guard(Inner()), headers=[BEARER], body=[value * 20]).status == 200


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("value", [b"{}", b'{"', b"{ ", b"{\n", b"{\t", b"{\r"])
def test_a_body_of_too_many_objects(value: bytes) -> None:
    """Guards the time in which vLLM finds 15 errors in each of them; texts are no objects."""
    assert ask(Guard(Inner()), headers=[BEARER], body=[value * 30] * 2).status == 413
    assert ask(Guard(Inner()), headers=[BEARER], body=[value * 25] * 2).status == 200
    text = rb'"f{a} {\"a\": 1} {{'
    assert ask(Guard(Inner()), headers=[BEARER], body=[text * 20]).status == 200


@pytest.mark.usefixtures("small")
def test_bodies_that_are_read() -> None:
    """Guards a body at the limit, and files, whose bytes are no JSON."""
    headers = [BEARER, (b"content-length", b"%d" % MIB)]
    assert ask(Guard(Inner()), headers=headers, body=[b"a" * MIB]).body == b"%d" % MIB
    upload = [BEARER, (b"Content-Type", b"multipart/form-data; boundary=x")]
    assert ask(Guard(Inner()), headers=upload, body=[b"," * 1000]).status == 200
    assert ask(Guard(Inner()), headers=upload, body=[b"," * 1000, b"a" * MIB]).status == 413


def test_the_largest_medium_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a video of the largest size in base64, whatever size the operator allows."""
    monkeypatch.delenv(MAX_BODY_VARIABLE, raising=False)
    assert max_body_bytes() >= (512 * MIB + 2) // 3 * 4 + MIB
    monkeypatch.setenv("VLLM_GLM41V_NPU_MAX_VIDEO_MB", "10")
    monkeypatch.setenv("VLLM_GLM41V_NPU_MAX_IMAGE_MB", "30")
    assert 40 * MIB < max_body_bytes() < 100 * MIB
    monkeypatch.setenv(MAX_BODY_VARIABLE, "7")
    assert max_body_bytes() == 7 * MIB
    for wrong in ("0", "-1", "many", "1.5", "²"):
        monkeypatch.setenv(MAX_BODY_VARIABLE, wrong)
        with pytest.raises(ValueError, match="expected MiB, a whole number above 0"):
            Guard(Inner())
