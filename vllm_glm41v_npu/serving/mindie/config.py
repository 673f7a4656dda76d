# SPDX-License-Identifier: Apache-2.0
"""MindIE's config.json: the meaning of its keys for `vllm serve`, and the keys without one.

Source: MindIE-LLM 8b4871ad, src/server/conf/config.json and
docs/zh/user_guide/user_manual/service_parameter_configuration.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vllm_glm41v_npu.backends import VISIBLE_NPUS
from vllm_glm41v_npu.decoding.settings import speculative_config
from vllm_glm41v_npu.serving.command import SettingsError
from vllm_glm41v_npu.serving.mindie.fields import TYPES
from vllm_glm41v_npu.serving.mindie.request import MAX_BODY_MB

SERVER, BACKEND = "ServerConfig", "BackendConfig"
DEPLOY, SCHEDULE = f"{BACKEND}.ModelDeployConfig", f"{BACKEND}.ScheduleConfig"
MODEL = f"{DEPLOY}.ModelConfig"


class Key(NamedTuple):
    """A key that has a meaning: its field of Settings, its type, and vLLM's option in words."""

    field: str
    kind: type
    option: str


TRANSLATED = {
    f"{SERVER}.ipAddress": Key("host", str, "--host"),
    f"{SERVER}.port": Key("port", int, "--port"),
    f"{DEPLOY}.maxSeqLen": Key("max_seq_len", int, "--max-model-len"),
    f"{DEPLOY}.maxInputTokenLen": Key("max_input_len", int, "not kept to, if less than maxSeqLen"),
    f"{MODEL}.modelName": Key("name", str, "--served-model-name"),
    f"{MODEL}.modelWeightPath": Key("model", str, "the model"),
    f"{MODEL}.worldSize": Key("world_size", int, "--tensor-parallel-size"),
    f"{MODEL}.npuMemSize": Key("kv_memory_gb", int, "--kv-cache-memory-bytes"),
    f"{MODEL}.trustRemoteCode": Key("trust_remote_code", bool, "--trust-remote-code"),
    f"{SCHEDULE}.maxBatchSize": Key("max_batch_size", int, "--max-num-seqs"),
    f"{SCHEDULE}.maxPrefillTokens": Key("max_prefill_tokens", int, "--max-num-batched-tokens"),
    f"{SCHEDULE}.cacheBlockSize": Key("block_size", int, "--block-size"),
    f"{SCHEDULE}.maxIterTimes": Key("max_iter_times", int, "--override-generation-config"),
}

ALL_THAT_IS_FREE = (f"{MODEL}.npuMemSize", -1)
"""MindIE's value for "all that is free", which is vLLM's default."""

CHECKED = {
    f"{SERVER}.httpsEnabled": "has to be false; for HTTPS give vLLM --ssl-certfile, --ssl-keyfile",
    f"{BACKEND}.npuDeviceIds": VISIBLE_NPUS,
    f"{MODEL}.plugin_params": "memory_decoding is --speculative-config, other plugins are nothing",
    f"{MODEL}.models": "stream_options.micro_batch is --additional-config, the rest means nothing",
    f"{MODEL}.speculationGamma": "has to be decoding_length or more, and means nothing else",
    f"{BACKEND}.modelInstanceNumber": "has to be 1: one server serves one",
    f"{BACKEND}.multiNodesInferEnabled": "has to be false: a model of this size needs one machine",
    f"{DEPLOY}.truncation": "has to be off: requests ask for it with truncate_prompt_tokens",
    f"{SERVER}.inferMode": "has to be standard: prefill and decode are not split over servers",
}

OTHER_RULES = "vLLM schedules by other rules"

WITHOUT_MEANING = {
    f"{SERVER}.management": "vLLM has one port for all routes",
    f"{SERVER}.metricsPort": "vLLM has /metrics on its one port",
    f"{SERVER}.allowAllZeroIpListening": "--host 0.0.0.0 is all it takes",
    f"{SERVER}.maxLinkNum": "vLLM queues without a limit",
    f"{SERVER}.fullTextEnabled": "streams have the new text only",
    f"{SERVER}.openAiSupport": "the OpenAI routes are vLLM's",
    f"{SERVER}.tokenTimeout": "vLLM has no limit of time",
    f"{SERVER}.e2eTimeout": "vLLM has no limit of time",
    f"{SERVER}.maxRequestLength": f"/generate takes {MAX_BODY_MB} MB",
    f"{SERVER}.interComm": "one server needs no others",
    f"{SERVER}.HealthCheckConfig": "/health asks the engine",
    f"{SERVER}.tls": "it is about HTTPS",
    f"{SERVER}.metricsTls": "it is about HTTPS",
    f"{SERVER}.kmc": "it is about HTTPS",
    f"{SERVER}.distDPServerEnabled": "one server needs no others",
    f"{SERVER}.layerwiseDisaggregated": "one server needs no others",
    f"{BACKEND}.backendName": "the engine is vLLM",
    f"{BACKEND}.tokenizerProcessNumber": "vLLM tokenizes in threads of its own",
    f"{BACKEND}.multiNodesInferPort": "it is about several machines",
    f"{BACKEND}.interNode": "it is about several machines",
    f"{BACKEND}.kvPoolConfig": "vLLM has --kv-transfer-config",
    f"{MODEL}.modelInstanceType": "there is one type",
    f"{MODEL}.cpuMemSize": "vLLM recomputes and does not swap",
    f"{MODEL}.backendType": "the network is vLLM's",
    f"{MODEL}.async_scheduler_wait_time": "vLLM's scheduler does not wait",
    f"{MODEL}.kv_": "prefill and decode are not split over servers",
    f"{SCHEDULE}.template": "vLLM mixes prefill and decode in a step",
    f"{SCHEDULE}.maxPrefillBatchSize": "vLLM limits the tokens of a step alone",
    f"{SCHEDULE}.prefill": OTHER_RULES,
    f"{SCHEDULE}.decode": OTHER_RULES,
    f"{SCHEDULE}.supportSelectBatch": OTHER_RULES,
    f"{SCHEDULE}.maxPreemptCount": OTHER_RULES,
    f"{SCHEDULE}.maxQueueDelayMicroseconds": OTHER_RULES,
    f"{SCHEDULE}.maxFirstTokenWaitTime": OTHER_RULES,
    f"{SCHEDULE}.maxN": "vLLM has VLLM_MAX_N_SEQUENCES",
    "Version": "it is about the file itself",
    "LogConfig": "vLLM logs by VLLM_LOGGING_LEVEL",
    "EnableDynamicAdjustTimeoutConfig": "vLLM has no limit of time",
}
"""The beginning of a key to the reason why it means nothing here; the longest that fits counts."""


def read_config(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return (fields of Settings, a line about every key) of a config.json.

    Raises SettingsError where it cannot be read, or asks for something `vllm serve` cannot do.
    """
    keys = dict(_flat(_load(path)))
    fields = {}
    for name, key in TRANSLATED.items():
        if name in keys and (name, keys[name]) != ALL_THAT_IS_FREE:
            fields[key.field] = _typed(name, keys[name], key.kind)
    _check(keys)
    if f"{BACKEND}.npuDeviceIds" in keys:
        fields["device_ids"] = _device_ids(keys[f"{BACKEND}.npuDeviceIds"])
    fields["speculative_config"] = _speculative_config(
        keys.get(f"{MODEL}.plugin_params"), keys.get(f"{MODEL}.speculationGamma")
    )
    if _micro_batch(keys.get(f"{MODEL}.models")):
        fields["micro_batch"] = True
    return fields, [f"{name} = {json.dumps(keys[name])}: {_meaning(name)}" for name in keys]


def _load(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise SettingsError(
            f"{path} is not JSON ({error}). Take out comments and dots, as in MindIE's README."
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get(BACKEND), dict):
        raise SettingsError(f"{path} has no {BACKEND}; expected a config.json of MindIE's server.")
    return config


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        path = f"{prefix}{name}"
        if path == MODEL:
            if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], dict):
                raise SettingsError(f"{MODEL} has to be a list of one model; one server has one.")
            value = value[0]
        if isinstance(value, dict) and path in (SERVER, BACKEND, DEPLOY, MODEL, SCHEDULE):
            yield from _flat(value, f"{path}.")
        else:
            yield path, value


def _typed(name: str, value: Any, kind: type) -> Any:
    fits = {
        int: TYPES["integer"](value) and value >= 1,
        str: TYPES["string"](value),
        bool: TYPES["boolean"](value),
    }
    if not fits[kind]:
        expected = {int: "a number of 1 or more", str: "a string", bool: "true or false"}[kind]
        raise SettingsError(f"{name} is {json.dumps(value)}; expected {expected}.")
    return value


def _check(keys: dict[str, Any]) -> None:
    standing: dict[str, Callable[[Any], bool]] = {
        f"{SERVER}.httpsEnabled": lambda value: value is False,
        f"{BACKEND}.modelInstanceNumber": lambda value: value == 1,
        f"{BACKEND}.multiNodesInferEnabled": lambda value: value is False,
        f"{DEPLOY}.truncation": lambda value: value in (False, 0),
        f"{SERVER}.inferMode": lambda value: value == "standard",
    }
    for name, holds in standing.items():
        if name in keys and not holds(keys[name]):
            raise SettingsError(f"{name} is {json.dumps(keys[name])}; it {CHECKED[name]}.")


def _device_ids(value: Any) -> tuple[int, ...]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        ids = value[0]
        if ids and all(type(number) is int and number >= 0 for number in ids):
            return tuple(ids)
    raise SettingsError(
        f"{BACKEND}.npuDeviceIds is {json.dumps(value)}; expected one list of ids in a list, "
        "such as [[0,1]]."
    )


def _speculative_config(plugin: Any, gamma: Any) -> dict[str, Any] | None:
    """Return vLLM's speculative configuration for MindIE's plugin_params and speculationGamma."""
    name = f"{MODEL}.plugin_params"
    if plugin in (None, ""):
        return None
    try:
        params = json.loads(plugin)
        kinds = params["plugin_type"].split(",")
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise SettingsError(
            f"{name} is {json.dumps(plugin)}; expected a string of a JSON object with plugin_type."
        ) from error
    if "la" in kinds:
        raise SettingsError(
            f"{name} asks for la, lookahead decoding, which vLLM does not have. Take it out, or "
            'give {"plugin_type":"memory_decoding","decoding_length":16}.'
        )
    if "memory_decoding" not in kinds:
        return None
    length, dynamic = params.get("decoding_length"), params.get("dynamic_algo")
    if length is not None:
        length = _typed(f"decoding_length of {name}", length, int)
    if dynamic is not None:
        dynamic = _typed(f"dynamic_algo of {name}", dynamic, bool)
    if gamma is not None and _typed(f"{MODEL}.speculationGamma", gamma, int) < (length or 0):
        raise SettingsError(
            f"{MODEL}.speculationGamma is {gamma}, less than the decoding_length of {length}; "
            "give as much or more."
        )
    return speculative_config("memory", length, dynamic)


def _micro_batch(models: Any) -> bool:
    """Return True where the settings of one of MindIE's networks ask for micro batch."""
    networks = models.values() if isinstance(models, dict) else ()
    streams = [network.get("stream_options") for network in networks if isinstance(network, dict)]
    asked = [options.get("micro_batch", False) for options in streams if isinstance(options, dict)]
    return any([_typed(f"micro_batch in {MODEL}.models", value, bool) for value in asked])


def _meaning(name: str) -> str:
    if name in TRANSLATED:
        return TRANSLATED[name].option
    if name in CHECKED:
        return CHECKED[name]
    begins = [begin for begin in WITHOUT_MEANING if name.startswith(begin)]
    if not begins:
        return "unknown, and not used"
    return f"no meaning here ({WITHOUT_MEANING[max(begins, key=len)]})"
