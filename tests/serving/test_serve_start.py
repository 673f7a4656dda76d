# SPDX-License-Identifier: Apache-2.0
"""What `glm41v serve` settles before vLLM starts: the port, and the cache on a CPU's host."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.checkpoints import TINY
from vllm_glm41v_npu.cli import app, start
from vllm_glm41v_npu.planning.kv_cache import KV_SPACE, KVCache, NoRoom


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The commands that would have become servers."""
    commands: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda _, command, __: commands.append(command))
    return commands


def serve(*words: str) -> Result:
    return CliRunner().invoke(app, ["serve", str(TINY), *words])


# --- the port ---


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    """A port as another vLLM has it: it lets others have it too."""
    with closing(socket.socket()) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        yield other


@pytest.mark.parametrize("listens", [False, True])
@pytest.mark.parametrize(
    "words",
    [
        ["--port", "{}"],
        ["--", "--port", "{}"],
        ["--", "--port={}"],
        ["--host", "0.0.0.0", "--port"],
    ],
)
def test_a_port_in_use(
    taken: socket.socket, started: list[Any], listens: bool, words: list[str]
) -> None:
    """Guards against two servers that share a port, and a traceback after seconds.

    A server that is loading its model has the port, and does not listen yet.
    """
    if listens:
        taken.listen()
    port = str(taken.getsockname()[1])
    words = [word.format(port) for word in words] + [port] * (words[-1] == "--port")
    result = serve(*words)
    assert (result.exit_code, started) == (1, [])
    assert f"Port {port} is in use" in result.stderr
    assert serve("--dry-run", *words).exit_code == 0


def test_a_server_that_has_just_ended(taken: socket.socket, started: list[Any]) -> None:
    """Guards a restart, while connections of the former server are ending."""
    port = taken.getsockname()[1]
    taken.listen()
    with closing(socket.create_connection(("127.0.0.1", port))) as client:
        taken.accept()[0].close()
        taken.close()
        client.recv(1)
        assert serve("--port", str(port)).exit_code == 0
    assert len(started) == 1


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine(host: str) -> None:
    """Guards a sentence for what cannot be bound either."""
    result = serve("--host", host)
    assert result.exit_code == 1
    assert f"'{host}' is no address of this machine" in result.stderr


def test_a_socket_file(taken: socket.socket, started: list[Any]) -> None:
    """Guards --uds, beside which a port means nothing."""
    words = ["--port", str(taken.getsockname()[1]), "--", "--uds", "/run/glm41v"]
    assert serve(*words).exit_code == 0
    assert len(started) == 1


# --- the cache ---


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the size was chosen for."""
    calls: list[Any] = []

    def choose(*arguments: Any) -> KVCache:
        calls.append(arguments)
        return KVCache(7 << 20, "It takes 7 MiB.")

    monkeypatch.setattr(start, "choose_kv_cache", choose)
    return calls


def test_a_size_that_fits(asked: list[Any]) -> None:
    """Guards a start on a CPU without VLLM_CPU_KVCACHE_SPACE, which vLLM does not survive."""
    result = serve("--dry-run")
    assert "--kv-cache-memory-bytes 7340032 " in result.stdout
    assert "Note: It takes 7 MiB." in result.stderr
    serve("--dry-run", "--max-seq-len", "4096")
    serve("--dry-run", "--", "--max_model_len=2048", "--dtype", "half", "-tp", "2")
    serve(
        "--dry-run", "--max-seq-len", "4096", "--", "--max-num-seqs", "3", "--max-model-len", "8k"
    )
    name = str(TINY)
    assert asked == [
        (name, None, 8, "auto", 1),
        (name, 4096, 8, "auto", 1),
        (name, 2048, 8, "half", 2),
        (name, None, 3, "auto", 1),
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["--kv-memory-gb", "3"],
        ["--device-ids", "0"],
        ["--", "--kv-cache-memory-bytes", "1G"],
        ["--", "--gpu_memory_utilization=0.5"],
        ["--", "--config", "file.yaml"],
    ],
)
def test_sizes_of_the_user(asked: list[Any], words: list[str]) -> None:
    """Guards what was set, and NPUs."""
    result = serve("--dry-run", *words)
    assert result.exit_code == 0
    assert "7340032" not in result.stdout
    assert asked == []


def test_a_model_that_does_not_fit(monkeypatch: pytest.MonkeyPatch, started: list[Any]) -> None:
    """Guards a sentence in place of 60 lines of traceback; a printed command may be another's."""

    def choose(*_: Any) -> KVCache:
        raise NoRoom("The model does not fit.")

    monkeypatch.setattr(start, "choose_kv_cache", choose)
    result = serve()
    assert (result.exit_code, started) == (1, [])
    assert result.stderr == "Error: The model does not fit.\n"
    result = serve("--dry-run")
    assert result.exit_code == 0
    assert "Note: On this machine: The model does not fit." in result.stderr
    assert "kv-cache-memory" not in result.stdout


def test_engines_of_run_and_ask(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Guards the same size without a server, and what the user set."""
    arguments = {"model": "m", "max_model_len": 9, "max_num_seqs": 2, "kv_cache_memory_bytes": None}
    arguments |= {"dtype": "auto", "tensor_parallel_size": 1}
    assert start.fitted(arguments) == arguments | {"kv_cache_memory_bytes": 7 << 20}
    assert capsys.readouterr().err == "Note: It takes 7 MiB.\n"
    assert start.fitted({"model": "m"})["kv_cache_memory_bytes"] == 7 << 20
    assert asked == [("m", 9, 2, "auto", 1), ("m", None, 1, "auto", 1)]
    for own in ({"kv_cache_memory_bytes": 1}, {"gpu_memory_utilization": 0.1}):
        assert start.fitted(arguments | own) == arguments | own


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the whole way on a CPU, with nothing set; on an NPU vLLM measures its memory."""
    monkeypatch.delenv(KV_SPACE, raising=False)
    monkeypatch.setattr("vllm_glm41v_npu.planning.kv_cache.starts_on_cpu", lambda environ: True)
    result = serve("--dry-run", "--max-seq-len", "1024")
    assert result.exit_code == 0
    assert "--kv-cache-memory-bytes" in result.stdout
    assert "Note: The KV cache takes" in result.stderr
