# SPDX-License-Identifier: Apache-2.0
"""The `vllm serve` command for settings in the terms of MindIE's users."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

from vllm_glm41v_npu.backends import VISIBLE_NPUS
from vllm_glm41v_npu.checks import MICRO_BATCH
from vllm_glm41v_npu.family import REASONING_PARSER
from vllm_glm41v_npu.serving.mindie.request import MAX_ITER_TIMES_VARIABLE

ROUTES = "vllm_glm41v_npu.serving.mindie.MindIERoutes"
GUARD = "vllm_glm41v_npu.serving.guard.Guard"
WORLD_SIZES = (1, 2)


class SettingsError(ValueError):
    """Settings that cannot be served; the message says what was found and what to do."""


@dataclass(frozen=True)
class Settings:
    """Settings that a server is started with; None leaves a value to vLLM. Lengths are in tokens.

    max_iter_times: the longest answer of any request.
    max_batch_size: the most requests that compute together.
    kv_memory_gb: memory for the KV cache of each device, in GiB.
    kv_memory_bytes: the same in bytes, where it was chosen and not set.
    speculative_config: vLLM's, for parallel decoding.
    micro_batch: cut large prefills in two on several devices.
    reasoning: take answers apart into reasoning and content.
    mindie_routes: answer /generate and /generate_stream.
    guard: ask for the API key on every route but /health, and limit bodies.
    shutdown_seconds: how long requests in flight may take once the server is told to end.
    extra: options of `vllm serve`, as they are.
    """

    model: str
    name: str | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    device_ids: tuple[int, ...] | None = None
    world_size: int | None = None
    max_seq_len: int | None = None
    max_input_len: int | None = None
    truncation: bool = False
    max_iter_times: int | None = None
    max_batch_size: int | None = None
    max_prefill_tokens: int | None = None
    block_size: int | None = None
    kv_memory_gb: int | None = None
    kv_memory_bytes: int | None = None
    trust_remote_code: bool = False
    reasoning: bool = True
    speculative_config: dict[str, Any] | None = None
    micro_batch: bool = False
    mindie_routes: bool = False
    guard: bool = True
    shutdown_seconds: int = 60
    extra: tuple[str, ...] = ()

    def check(self) -> list[str]:
        """Return sentences about settings that the server does not keep to.

        Raises SettingsError where it cannot be served at all.
        """
        devices, world = self.device_ids, self.world_size
        if devices and world and len(devices) != world:
            raise SettingsError(
                f"{len(devices)} device ids ({_listed(devices)}) for a world size of {world}; "
                "give as many ids as the world size."
            )
        if world and world not in WORLD_SIZES:
            raise SettingsError(
                f"The world size is {world}; GLM-4.1V has two KV heads, so it takes "
                f"{_listed(WORLD_SIZES)}."
            )
        if self.micro_batch and any(word.startswith("--additional-config") for word in self.extra):
            raise SettingsError(
                "Micro batch is on beside --additional-config, which vLLM takes once; put "
                f'"{MICRO_BATCH}": true into that one, and leave out --micro-batch.'
            )
        if self.truncation:
            raise SettingsError(
                "Truncation is on; vLLM cuts a prompt only where a request asks for it. Leave it "
                "off, and send truncate_prompt_tokens in the requests that want it."
            )
        longest = (self.max_seq_len or 0) - 1
        if self.max_input_len and 0 < self.max_input_len < longest:
            return [
                f"The longest input is {self.max_input_len} tokens, and that is not kept to: vLLM "
                f"limits input and answer together, here to {self.max_seq_len}."
            ]
        return []

    def environment(self) -> dict[str, str]:
        """Return the environment variables to set for `command`."""
        found = {}
        if self.device_ids:
            found[VISIBLE_NPUS] = _listed(self.device_ids, ",")
        if self.mindie_routes and self.max_iter_times:
            found[MAX_ITER_TIMES_VARIABLE] = str(self.max_iter_times)
        return found

    def command(self) -> list[str]:
        """Return `vllm serve` and its arguments."""
        world = self.world_size or (len(self.device_ids) if self.device_ids else None)
        memory = f"{self.kv_memory_gb}G" if self.kv_memory_gb else self.kv_memory_bytes
        most = self.max_iter_times
        drafts = self.speculative_config
        options = {
            "--served-model-name": self.name,
            "--host": self.host,
            "--port": self.port,
            "--tensor-parallel-size": world,
            "--max-model-len": self.max_seq_len,
            "--override-generation-config": json.dumps({"max_new_tokens": most}) if most else None,
            "--max-num-seqs": self.max_batch_size,
            "--max-num-batched-tokens": self.max_prefill_tokens,
            "--block-size": self.block_size,
            "--kv-cache-memory-bytes": memory,
            "--speculative-config": json.dumps(drafts) if drafts else None,
            "--additional-config": json.dumps({MICRO_BATCH: True}) if self.micro_batch else None,
            "--reasoning-parser": REASONING_PARSER if self.reasoning else None,
            "--shutdown-timeout": self.shutdown_seconds,
        }
        middleware = [ROUTES] * self.mindie_routes + [GUARD] * self.guard  # the last sees all first
        given = [(name, str(value)) for name, value in options.items() if value is not None]
        given += [("--middleware", path) for path in middleware]
        command = ["vllm", "serve", self.model, *(word for pair in given for word in pair)]
        return command + ["--trust-remote-code"] * self.trust_remote_code + list(self.extra)

    def line(self) -> str:
        """Return environment and command as one line for a shell."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment().items()]
        return " ".join([*variables, shlex.join(self.command())])


def _listed(values: tuple[int, ...], separator: str = ", ") -> str:
    return separator.join(map(str, values))
