# SPDX-License-Identifier: Apache-2.0
"""Start of vLLM by a command: options of parallel decoding, a free port, a CPU's memory."""

from __future__ import annotations

import argparse
import errno
import socket
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_glm41v_npu.decoding.settings import Kind
from vllm_glm41v_npu.planning.kv_cache import choose_kv_cache
from vllm_glm41v_npu.serving.command import Settings

ParallelDecoding = Annotated[
    Kind | None, typer.Option(help="Draft several tokens a step; the answers stay the same.")
]
DecodingLength = Annotated[
    int | None, typer.Option(help="The most draft tokens, 1 to 16; 5 for ngram, else 16.")
]
DynamicDecoding = Annotated[
    bool | None, typer.Option(help="For memory: stop at a token that is likely wrong; the default.")
]
SpeculativeConfig = Annotated[
    str | None, typer.Option(help="vLLM's own, in JSON, in place of --parallel-decoding.")
]
"""Options that several commands have."""

WORDS = ("--host", "--port", "--uds", "--max-model-len", "--max-num-seqs", "--dtype")
MEMORY = ("--kv-cache-memory-bytes", "--gpu-memory-utilization", "--config")
"""vLLM's options that decide the size of the cache, or may."""


class PortTaken(ValueError):
    """The server cannot have its port; the message says why and what to do."""


def vllm_options(settings: Settings) -> dict[str, str]:
    """Return the options of WORDS and MEMORY that vLLM will see; of two, the last counts."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in (*WORDS, *MEMORY):
        parser.add_argument(name, nargs="?", default=None, const="")
    parser.add_argument("--tensor-parallel-size", "-tp")
    words = []
    for word in settings.command()[3:]:  # vLLM takes --max_model_len too
        name, equals, value = word.partition("=")
        words.append(name.replace("_", "-") + equals + value if name.startswith("--") else word)
    found = vars(parser.parse_known_args(words)[0])
    return {name: value for name, value in found.items() if value is not None}


def check_port(settings: Settings) -> None:
    """Raise PortTaken where the server cannot have its port.

    vLLM would find out after seconds, with a traceback; beside another vLLM it would not find out,
    as each lets the other have its port, and half of the requests would go to the other one.
    """
    options = vllm_options(settings)
    host, port = options.get("host", ""), _number(options.get("port", "8000"))
    if "uds" in options or port is None or port >= 1 << 16:  # about wrong numbers vLLM says enough
        return
    try:
        _bind(host, port, reuse=False)
    except OSError as error:
        # A server that has just ended leaves connections, and one that starts a bound port alone.
        if error.errno == errno.EADDRINUSE and _has_connections(port):
            with suppress(OSError):
                _bind(host, port, reuse=True)
                return
        raise PortTaken(_refusal(host, port, error)) from error


def _bind(host: str, port: int, reuse: bool) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
        probe.bind((host, port))


def _has_connections(port: int) -> bool:
    """Return True where the kernel lists a connection at a port, open or ending."""
    lines: list[str] = []
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        with suppress(OSError):
            lines += table.read_text().splitlines()[1:]
    return any(line.split()[1].endswith(f":{port:04X}") for line in lines)


def _refusal(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} is in use, or is being taken by a server that starts. End that one, or "
            "give another --port."
        )
    if error.errno == errno.EACCES:
        return f"Port {port} is for the administrator alone; give a --port of 1024 or more."
    return f"{host!r} is no address of this machine ({error.strerror}); give another --host."


def with_kv_cache(settings: Settings) -> tuple[Settings, str | None]:
    """Return the settings with a KV cache that fits a CPU's host, and a sentence about its size.

    They stay as they are where the size is set, and on NPUs, whose memory vLLM measures.

    Raises:
        NoRoom: The model does not fit.
    """
    options = vllm_options(settings)
    set_by_user = any(name[2:].replace("-", "_") in options for name in MEMORY)
    if set_by_user or settings.device_ids:
        return settings, None
    length, sequences = (_number(options.get(name)) for name in ("max_model_len", "max_num_seqs"))
    cache = choose_kv_cache(
        settings.model,
        length,
        min(sequences or 8, 8),
        options.get("dtype", "auto"),
        _number(options.get("tensor_parallel_size")) or 1,
    )
    if cache is None:
        return settings, None
    return replace(settings, kv_memory_bytes=cache.size), cache.sentence


def _number(text: str | None) -> int | None:
    """Return the number in a text; None where it is none, such as vLLM's 8k."""
    return int(text) if text and text.isascii() and text.isdecimal() else None


def fitted(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of vLLM's LLM with a KV cache that fits a CPU's host, and print its size.

    They stay as they are where the size is set, and on NPUs, whose memory vLLM measures.

    Raises:
        NoRoom: The model does not fit.
    """
    found = dict(arguments)
    if found.get("kv_cache_memory_bytes") or "gpu_memory_utilization" in found:
        return found
    cache = choose_kv_cache(
        found["model"],
        found.get("max_model_len"),
        found.get("max_num_seqs", 1),
        found.get("dtype", "auto"),
        found.get("tensor_parallel_size", 1),
    )
    if cache is not None:
        found["kv_cache_memory_bytes"] = cache.size
        typer.echo(f"Note: {cache.sentence}", err=True)
    return found
